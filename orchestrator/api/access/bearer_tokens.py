"""The form of a token: `convoy_`, a mark of the server that made it, and 256 random bits. Pure.

Only the SHA-256 of a token is kept. The bits are random, so a slow hash for passwords would add nothing
(https://pages.nist.gov/800-63-3/sp800-63b.html, 5.1.2.2: look-up secrets of at least 112 bits of entropy).
"""

import base64
import hashlib
import hmac
import re

PREFIX = "convoy_"
"""Secret scanners find tokens by it."""
SECRET_BYTES = 32
_FORM = re.compile(rf"{PREFIX}([0-9a-f]{{8}})_([A-Za-z0-9_-]{{43}})")


def server_mark(server_id: str) -> str:
    """Eight hexadecimal digits in the tokens of one server."""
    return hashlib.sha256(server_id.encode()).hexdigest()[:8]


def new_secret(server_id: str, random: bytes) -> str:
    """A token from `SECRET_BYTES` random bytes."""
    if len(random) != SECRET_BYTES:
        raise ValueError(f"a token needs {SECRET_BYTES} random bytes")
    return f"{PREFIX}{server_mark(server_id)}_{base64.urlsafe_b64encode(random).decode().rstrip('=')}"


def digest_of(secret: str) -> str:
    """What is stored of a token."""
    return hashlib.sha256(secret.encode()).hexdigest()


def same_digest(left: str, right: str) -> bool:
    """Compared in a time that does not depend on where they differ."""
    return hmac.compare_digest(left.encode(), right.encode())


def mistake_in(secret: str, server_id: str) -> tuple[str, str] | None:
    """Message and hint for a text that cannot be a token of this server; None if it could be one."""
    found = _FORM.fullmatch(secret)
    if found is None:
        return (
            f"this is no token: it has {len(secret)} characters, expected {PREFIX} and 52 more",
            "copy the whole token; `convoy token create` makes one",
        )
    if found.group(1) != server_mark(server_id):
        return (
            f"this token belongs to another server (its mark is {found.group(1)}, this server's is "
            f"{server_mark(server_id)})",
            "`convoy login URL` stores a token for each server; `--server` chooses one",
        )
    return None
