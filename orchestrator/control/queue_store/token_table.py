"""API tokens, without their secrets: only a sha256 is stored."""

import sqlite3
from dataclasses import dataclass


@dataclass(frozen=True)
class TokenRow:
    """One token."""

    id: str
    name: str
    team: str
    user: str
    role: str
    """viewer, submitter or admin."""
    sha256: str
    created_s: float
    expires_s: float | None = None
    last_used_s: float | None = None
    revoked: bool = False


_SELECT = "SELECT id, name, team, user, role, sha256, created_s, expires_s, last_used_s, revoked FROM tokens"


def add_token(connection: sqlite3.Connection, token: TokenRow) -> None:
    """Store a token. Raises sqlite3.IntegrityError if its id or its hash is known."""
    connection.execute(
        "INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (token.id, token.name, token.team, token.user, token.role, token.sha256, token.created_s, token.expires_s,
         token.last_used_s, int(token.revoked)),
    )  # fmt: skip


def token_by_hash(connection: sqlite3.Connection, sha256: str) -> TokenRow | None:
    """The token with this hash, also if it is revoked or expired."""
    row = connection.execute(f"{_SELECT} WHERE sha256 = ?", (sha256,)).fetchone()
    return _decode(row) if row is not None else None


def all_tokens(connection: sqlite3.Connection) -> list[TokenRow]:
    """Every token, oldest first."""
    return [_decode(row) for row in connection.execute(f"{_SELECT} ORDER BY created_s, id")]


def revoke_token(connection: sqlite3.Connection, token_id: str) -> bool:
    """Mark a token as revoked; False if there is none with this id."""
    return connection.execute("UPDATE tokens SET revoked = 1 WHERE id = ?", (token_id,)).rowcount == 1


def touch_token(connection: sqlite3.Connection, token_id: str, now_s: float) -> None:
    """Record that a token was used."""
    connection.execute("UPDATE tokens SET last_used_s = ? WHERE id = ?", (now_s, token_id))


def _decode(row: tuple[str, str, str, str, str, str, float, float | None, float | None, int]) -> TokenRow:
    return TokenRow(*row[:-1], revoked=bool(row[-1]))
