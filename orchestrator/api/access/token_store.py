"""The tokens of a server: one file that only its owner may read, with the hash of each token."""

import os
import re
import secrets
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.api.access.bearer_tokens import SECRET_BYTES, digest_of, mistake_in, new_secret, same_digest
from orchestrator.atomic_files import locked, read_json
from orchestrator.control.queue_service import Caller
from orchestrator.domain.errors import ConflictError, ConvoyError, NotFoundError, UnavailableError, UsageError
from orchestrator.wire.cluster_messages import TokenView
from orchestrator.wire.request_messages import NewToken, TokenRequest
from orchestrator.wire.wire_base import WireModel

TOKENS_FILE = "tokens.json"
MOST_TOKENS = 1000
"""Tokens that are valid at one time."""
KEPT_REVOKED = 100
"""Revoked and expired tokens that are still listed, the newest."""
_USE_WRITTEN_S = 60.0
"""Seconds between two times at which the use of tokens is written down."""


class UnauthenticatedError(UsageError):
    """There is no valid token in the request."""


class StoredToken(WireModel):
    """A token as the file has it."""

    view: TokenView
    sha256: str


class _TokensFile(WireModel):
    tokens: list[StoredToken] = []


@dataclass(frozen=True)
class Holder:
    """Who asks, and with which token."""

    token_id: str
    caller: Caller


class TokenStore:
    """Makes, lists, checks and revokes tokens. Thread-safe; a change by another process is seen at the next request."""

    def __init__(self, directory: Path, server_id: str, clock: Callable[[], float]) -> None:
        """`clock`: Unix seconds."""
        self._path, self._server_id, self._clock = directory / TOKENS_FILE, server_id, clock
        self._lock = threading.RLock()
        self._stamp: tuple[int, int] | None = None
        self._tokens: dict[str, StoredToken] = {}
        self._used: dict[str, float] = {}
        self._use_written_s = clock()

    def create(self, request: TokenRequest) -> NewToken:
        """A new token. Its secret is not kept. Raises ConflictError, UnavailableError."""
        now_s = self._clock()
        secret = new_secret(self._server_id, secrets.token_bytes(SECRET_BYTES))
        view = TokenView(
            id=secrets.token_hex(6), name=request.name, team=request.team, user=request.user, role=request.role,
            created_s=now_s, expires_s=now_s + request.expires_in_s if request.expires_in_s is not None else None,
            last_used_s=None, revoked=False,
        )  # fmt: skip
        with self._lock, locked(self._path.parent):
            self._refresh()
            valid = [each.view for each in self._tokens.values() if _is_valid(each.view, now_s)]
            if len(valid) >= MOST_TOKENS:
                raise ConflictError(f"there are {MOST_TOKENS} tokens already", "revoke some: `convoy token revoke ID`")
            if any(each.name == request.name for each in valid):
                raise ConflictError(
                    f"there is a token named {request.name!r} already", "give another --name, or revoke that one"
                )
            self._tokens[view.id] = StoredToken(view=view, sha256=digest_of(secret))
            self._write()
        return NewToken(token=view, secret=secret)

    def list(self) -> list[TokenView]:
        """All tokens, the newest first, without their secrets."""
        with self._lock:
            self._refresh()
            views = [self._with_use(each.view) for each in self._tokens.values()]
        return sorted(views, key=lambda view: (view.created_s, view.id), reverse=True)

    def revoke(self, query: str) -> TokenView:
        """Make a token invalid for ever. `query`: its id, a unique prefix of it, or the name of a valid one. Raises
        NotFoundError, UnavailableError."""
        with self._lock, locked(self._path.parent):
            self._refresh()
            view = self._find(query)
            revoked = view.model_copy(update={"revoked": True})
            self._tokens[view.id] = StoredToken(view=revoked, sha256=self._tokens[view.id].sha256)
            self._write()
            return revoked

    def holder(self, secret: str) -> Holder:
        """Who a token belongs to. Raises UnauthenticatedError if it is not valid."""
        mistake = mistake_in(secret, self._server_id)
        if mistake is not None:
            raise UnauthenticatedError(*mistake)
        now_s, digest = self._clock(), digest_of(secret)
        with self._lock:
            self._refresh()
            found = next((each for each in self._tokens.values() if same_digest(each.sha256, digest)), None)
            if found is None:
                raise UnauthenticatedError("this server does not know this token", "`convoy token create` makes one")
            view = found.view
            if view.revoked:
                raise UnauthenticatedError(f"the token {view.id} ({view.name}) was revoked", "ask for another one")
            if not _is_valid(view, now_s):
                raise UnauthenticatedError(f"the token {view.id} ({view.name}) has expired", "ask for another one")
            self._used[view.id] = now_s
            if now_s - self._use_written_s > _USE_WRITTEN_S:
                self._use_written_s = now_s
                self._write_use()
        return Holder(view.id, Caller(view.user, view.team, view.role))

    def _write_use(self) -> None:
        """It is a detail: a full disk must not refuse a request because of it."""
        try:
            self._write()
        except UnavailableError:
            self._stamp = None

    def _find(self, query: str) -> TokenView:
        views = [each.view for each in self._tokens.values()]
        exact = [view for view in views if view.id == query]
        named = [view for view in views if view.name == query and not view.revoked]
        begins = [view for view in views if re.fullmatch(r"[0-9a-f]{4,}", query) and view.id.startswith(query)]
        for matching in (exact, named, begins):
            if len(matching) == 1:
                return matching[0]
            if matching:
                raise ConflictError(f"{query!r} is the start of {len(matching)} tokens", "give more of the id")
        raise NotFoundError(f"there is no token {query!r}", "`convoy token list` lists them")

    def _with_use(self, view: TokenView) -> TokenView:
        used_s = self._used.get(view.id)
        return view if used_s is None else view.model_copy(update={"last_used_s": used_s})

    def _refresh(self) -> None:
        """Read the file if it has changed."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            self._stamp, self._tokens = None, {}
            return
        except OSError as error:
            raise UnavailableError(f"the tokens cannot be read: {error.strerror}") from error
        stamp = (status.st_mtime_ns, status.st_ino)
        if stamp == self._stamp:
            return
        value = read_json(self._path)
        try:
            stored = _TokensFile.model_validate(value)
        except ValueError:
            raise DamagedTokensError(self._path) from None
        self._tokens = {each.view.id: each for each in stored.tokens}
        self._stamp = stamp

    def _write(self) -> None:
        """Readable for its owner alone. Raises UnavailableError."""
        now_s = self._clock()
        tokens = [StoredToken(view=self._with_use(each.view), sha256=each.sha256) for each in self._tokens.values()]
        tokens.sort(key=lambda each: each.view.created_s)
        over = [each for each in tokens if not _is_valid(each.view, now_s)]
        dropped = {each.view.id for each in over[: max(0, len(over) - KEPT_REVOKED)]}
        kept = [each for each in tokens if each.view.id not in dropped]
        try:
            write_private(self._path, _TokensFile(tokens=kept).model_dump_json(indent=1).encode())
            status = self._path.stat()
        except OSError as error:
            self._stamp = None
            raise UnavailableError(f"the tokens cannot be written: {error.strerror}") from error
        self._tokens = {each.view.id: each for each in kept}
        self._stamp = (status.st_mtime_ns, status.st_ino)


class DamagedTokensError(ConvoyError):
    """The file of the tokens cannot be read."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is damaged", "restore it from a backup, or remove it: then all tokens are invalid")


def write_private(path: Path, data: bytes) -> None:
    """Replace a file durably; only its owner may read it, at any moment. Raises OSError."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _is_valid(view: TokenView, now_s: float) -> bool:
    return not view.revoked and (view.expires_s is None or now_s < view.expires_s)
