"""What every request passes first, in ASGI: the token, the rate, the version of the client, the size of the body.

It works before FastAPI reads a body, so that a caller without a token cannot make the server read one.
"""

import asyncio
import itertools
import re
import secrets
import time
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.api.access.issued_tokens import IssuedTokens, UnauthenticatedError
from orchestrator.api.access.token_bucket import RateLimiter
from orchestrator.api.api_parts import HOLDER
from orchestrator.api.api_settings import ApiSettings
from orchestrator.api.error_answers import HttpRefusal, refusal, refusal_of
from orchestrator.domain.errors import ConvoyError
from orchestrator.wire.api_version import API_PREFIX, API_VERSION, REQUEST_HEADER, VERSION_HEADER, major

OPEN_PATHS = frozenset({f"{API_PREFIX}/health", f"{API_PREFIX}/openapi.json"})
"""What needs no token."""
REQUEST_ID = "convoy.request_id"
"""Key of the ASGI scope."""
UPLOADS = f"{API_PREFIX}/files/"
DRAINED_BYTES = 32 << 20
"""Of a body that is too large so much is read before the answer: a client that still sends would not see it."""
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Of answers of the API. The page has its own content security policy."""
_PRINTABLE = re.compile(r"[A-Za-z0-9_.-]+")
Log = Callable[[str], None]


class Envelope:
    """The outermost layer: an id and the version in every answer, headers for browsers, and an answer also if the
    application fails."""

    def __init__(self, app: ASGIApp, log: Log) -> None:
        """`log` gets one line for each request that failed because of the server; it has no header and no body."""
        self._app, self._log = app, log
        self._prefix, self._numbers = secrets.token_hex(4), itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, started = self._request_id(Headers(scope=scope).get(REQUEST_HEADER)), [False]
        scope[REQUEST_ID] = request_id

        async def enveloped(message: Message) -> None:
            if message["type"] == "http.response.start":
                started[0] = True
                headers = MutableHeaders(scope=message)
                headers[REQUEST_HEADER], headers[VERSION_HEADER] = request_id, API_VERSION
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, receive, enveloped)
        except Exception as error:  # noqa: BLE001  # the last line of defence: the client gets an answer, the log a line
            where = _place_of(error)
            self._log(f"request {request_id}: {scope['method']} {_route(scope)}: {type(error).__name__} at {where}")
            if not started[0]:
                await server_failed(scope).response()(scope, receive, enveloped)

    def _request_id(self, given: str | None) -> str:
        """The client's own, if it can be printed into a log safely; else a number of this server's."""
        safe = given is not None and 1 <= len(given) <= 64 and _PRINTABLE.fullmatch(given) is not None
        return given if given is not None and safe else f"{self._prefix}{next(self._numbers):08x}"


def server_failed(scope: Scope) -> HttpRefusal:
    """The answer to a request that met a bug."""
    return refusal(500, f"the server failed (request {scope.get(REQUEST_ID)})", "its log has a line with this id")


def _route(scope: Scope) -> str:
    """The path without what could be a secret: the pattern of the route, if there is one."""
    route = scope.get("route")
    return str(getattr(route, "path", "?"))


def _place_of(error: Exception) -> str:
    """File and line of the innermost frame. The message of the error may have values of the request: it is left out."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}" if frame is not None else "?"


class Gate:
    """Lets a request through that has a valid token and a body of a permitted size, at a permitted rate."""

    def __init__(self, app: ASGIApp, tokens: IssuedTokens, settings: ApiSettings) -> None:
        self._app, self._tokens, self._settings = app, tokens, settings
        self._requests = RateLimiter(settings.requests_per_s, settings.request_burst)
        self._failures = RateLimiter(settings.failures_per_s, settings.failure_burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not str(scope["path"]).startswith(f"{API_PREFIX}/"):
            await self._app(scope, receive, send)
            return
        refused = await self._refused(scope)
        if refused is not None:
            await refused.response()(scope, receive, send)
        elif str(scope["path"]).startswith(UPLOADS):
            await self._app(scope, receive, send)
        else:
            await self._with_body(scope, receive, send)

    async def _refused(self, scope: Scope) -> HttpRefusal | None:
        headers = Headers(scope=scope)
        version = headers.get(VERSION_HEADER)
        if version is not None and major(version) != major(API_VERSION):
            return refusal(
                426,
                f"this server has version {API_VERSION} of the API, the client {_shown(version)}",
                "install the Convoy version of the server on the client's machine: `convoy server status` shows it",
                headers={"Upgrade": f"convoy/{API_VERSION}"},
            )
        if scope["path"] in OPEN_PATHS:
            return None
        return await self._not_authenticated(scope, headers)

    async def _not_authenticated(self, scope: Scope, headers: Headers) -> HttpRefusal | None:
        client = scope.get("client")
        address, now_s = (str(client[0]) if client else "?"), time.monotonic()
        try:
            scheme, _, secret = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not secret.strip():
                raise UnauthenticatedError(
                    "this needs a token", "send `Authorization: Bearer TOKEN`; `convoy login URL` stores one"
                )
            holder = self._tokens.remembered(secret.strip())
            if holder is None:
                holder = await run_in_threadpool(self._tokens.holder, secret.strip())
        except UnauthenticatedError as error:
            # Valid tokens from the same address, a proxy's perhaps, are not concerned.
            wait_s = self._failures.wait_s(address, now_s)
            return _too_many("requests without a valid token", wait_s) if wait_s > 0 else refusal_of(error)
        except ConvoyError as error:
            return refusal_of(error)
        wait_s = self._requests.wait_s(holder.token_id, now_s)
        if wait_s > 0:
            return _too_many(
                f"requests with this token, {self._settings.requests_per_s:g} a second are allowed", wait_s
            )
        scope[HOLDER] = holder
        return None

    async def _with_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the whole body first: a route gets all of it, or is not called."""
        body = await read_body(scope, receive, self._settings)
        if body is None:
            return  # the client is gone
        if isinstance(body, HttpRefusal):
            await body.response()(scope, receive, send)
            return
        given = [False]

        async def replay() -> Message:
            if not given[0]:
                given[0] = True
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        await self._app(scope, replay, send)


async def read_body(scope: Scope, receive: Receive, settings: ApiSettings) -> bytes | HttpRefusal | None:
    """The body of a request, or why it is refused; None if the client has gone."""
    limit, declared = settings.max_body_bytes, Headers(scope=scope).get("content-length", "")
    too_large = refusal(
        413,
        f"the body is larger than {limit >> 10} KiB",
        "a job file has at most 1 MiB; other files are uploaded beside it",
        headers={"Connection": "close"},
    )
    if declared.isdecimal() and int(declared) > DRAINED_BYTES:
        return too_large
    parts: list[bytes] = []
    size, deadline = 0, time.monotonic() + settings.upload_wait_s
    while True:
        try:
            wait_s = min(settings.body_wait_s, max(0.0, deadline - time.monotonic()))
            message = await asyncio.wait_for(receive(), wait_s)
        except TimeoutError:
            return refusal(
                408,
                f"the body was cut off: {size} bytes came, then nothing for {settings.body_wait_s:g} s",
                "send the request again",
                headers={"Connection": "close"},
            )
        if message["type"] == "http.disconnect":
            return None
        piece: bytes = message.get("body", b"")
        size += len(piece)
        if size <= limit:
            parts.append(piece)
        elif size > DRAINED_BYTES:
            return too_large
        if not message.get("more_body", False):
            return b"".join(parts) if size <= limit else too_large


def _too_many(what: str, wait_s: float) -> HttpRefusal:
    seconds = max(1, round(wait_s + 0.5))
    return refusal(429, f"too many {what}", f"try again in {seconds} s", headers={"Retry-After": str(seconds)})


def _shown(version: str) -> str:
    return version[:16] if version.isprintable() and version.isascii() else "another one"
