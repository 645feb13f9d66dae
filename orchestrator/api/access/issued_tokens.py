"""The tokens of a server: made, listed, checked and revoked. Its database has their hashes alone."""

import re
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from orchestrator.api.access.bearer_tokens import SECRET_BYTES, digest_of, mistake_in, new_secret, same_digest
from orchestrator.control.queue_service import Caller
from orchestrator.control.queue_store.queue_store import QueueStore
from orchestrator.control.queue_store.token_table import (
    TokenRow,
    add_token,
    all_tokens,
    revoke_token,
    token_by_hash,
    touch_token,
)
from orchestrator.domain.errors import ConflictError, NotFoundError, UsageError
from orchestrator.wire.cluster_messages import TokenView
from orchestrator.wire.request_messages import NewToken, TokenRequest

MOST_TOKENS = 1000
"""Tokens that are valid at one time."""
USE_WRITTEN_S = 60.0
"""Seconds between two times at which the use of one token is written down."""


REMEMBERED_S = 1.0
"""How long the answer of the database for a token is used again: another server that revokes it is noticed that late.
This server's own revocations count at once."""
MOST_REMEMBERED = 2 * MOST_TOKENS


class UnauthenticatedError(UsageError):
    """There is no valid token in the request."""


@dataclass(frozen=True)
class Holder:
    """Who asks, and with which token."""

    token_id: str
    caller: Caller


class IssuedTokens:
    """All tokens. Thread-safe. Every method may raise UnavailableError."""

    def __init__(self, store: QueueStore, clock: Callable[[], float]) -> None:
        """`clock`: Unix seconds."""
        self._store, self._clock = store, clock
        self._used: dict[str, float] = {}
        """When the last use of each token was written down."""
        self._lock = threading.Lock()
        self._remembered: dict[str, tuple[Holder, float]] = {}
        """By token: until when its holder need not be looked up."""

    @property
    def server_id(self) -> str:
        """Of the server whose tokens these are."""
        return self._store.server_id

    def create(self, request: TokenRequest) -> NewToken:
        """A new token. Its secret is not kept. Raises ConflictError if its name is taken or there are too many."""
        now_s = self._clock()
        secret = new_secret(self.server_id, secrets.token_bytes(SECRET_BYTES))
        row = TokenRow(
            id=secrets.token_hex(6), name=request.name, team=request.team, user=request.user, role=request.role,
            sha256=digest_of(secret), created_s=now_s,
            expires_s=now_s + request.expires_in_s if request.expires_in_s is not None else None,
        )  # fmt: skip
        with self._lock:
            valid = [each for each in self._store.read(all_tokens) if _is_valid(each, now_s)]
            if len(valid) >= MOST_TOKENS:
                raise ConflictError(f"there are {MOST_TOKENS} tokens already", "revoke some: `convoy token revoke ID`")
            if any(each.name == request.name for each in valid):
                hint = "give another --name, or revoke that one: `convoy token revoke`"
                raise ConflictError(f"there is a token named {request.name!r} already", hint)
            self._store.write(lambda connection: add_token(connection, row))
        return NewToken(token=view_of(row), secret=secret)

    def list(self) -> list[TokenView]:
        """All tokens, the newest first, without their secrets."""
        return [view_of(row) for row in reversed(self._store.read(all_tokens))]

    def revoke(self, query: str) -> TokenView:
        """Make a token invalid for ever. `query`: its id, a unique prefix of it, or the name of a valid one. Raises
        NotFoundError, ConflictError."""
        row = _find(self._store.read(all_tokens), query)
        self._store.write(lambda connection: revoke_token(connection, row.id))
        self._remembered.clear()
        return view_of(replace(row, revoked=True))

    def remembered(self, secret: str) -> Holder | None:
        """Who a token belongs to, if that was looked up a moment ago. Does not block."""
        found = self._remembered.get(secret)
        return found[0] if found is not None and self._clock() < found[1] else None

    def holder(self, secret: str) -> Holder:
        """Who a token belongs to. Raises UnauthenticatedError if it is not valid."""
        mistake = mistake_in(secret, self.server_id)
        if mistake is not None:
            raise UnauthenticatedError(*mistake)
        now_s, digest = self._clock(), digest_of(secret)
        row = self._store.read(lambda connection: token_by_hash(connection, digest))
        if row is None or not same_digest(row.sha256, digest):
            raise UnauthenticatedError("this server does not know this token", "`convoy token create` makes one")
        if row.revoked:
            raise UnauthenticatedError(f"the token {row.id} ({row.name}) was revoked", "ask an admin for another one")
        if not _is_valid(row, now_s):
            raise UnauthenticatedError(f"the token {row.id} ({row.name}) has expired", "ask an admin for another one")
        if now_s - self._used.get(row.id, 0.0) > USE_WRITTEN_S:
            self._used[row.id] = now_s
            self._store.submit(lambda connection: touch_token(connection, row.id, now_s))
        holder = Holder(row.id, Caller(row.user, row.team, row.role))
        if len(self._remembered) >= MOST_REMEMBERED:
            self._remembered.clear()
        self._remembered[secret] = (holder, min(now_s + REMEMBERED_S, row.expires_s or now_s + REMEMBERED_S))
        return holder


def view_of(row: TokenRow) -> TokenView:
    """A token without its hash."""
    return TokenView(
        id=row.id, name=row.name, team=row.team, user=row.user, role=row.role, created_s=row.created_s,
        expires_s=row.expires_s, last_used_s=row.last_used_s, revoked=row.revoked,
    )  # fmt: skip


def _find(rows: list[TokenRow], query: str) -> TokenRow:
    exact = [row for row in rows if row.id == query]
    named = [row for row in rows if row.name == query and not row.revoked]
    begins = [row for row in rows if re.fullmatch(r"[0-9a-f]{4,}", query) and row.id.startswith(query)]
    for matching in (exact, named, begins):
        if len(matching) == 1:
            return matching[0]
        if matching:
            raise ConflictError(f"{query!r} means {len(matching)} tokens", "give more of the id: `convoy token list`")
    raise NotFoundError(f"there is no token {query!r}", "`convoy token list` lists them")


def _is_valid(row: TokenRow, now_s: float) -> bool:
    return not row.revoked and (row.expires_s is None or now_s < row.expires_s)
