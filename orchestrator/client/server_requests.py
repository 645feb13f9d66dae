"""Requests to a server: connecting, bounded retries, errors with their hints, streams that resume."""

import json
import random
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import httpx2

from orchestrator.client.api_errors import ApiError, UnreachableError
from orchestrator.client.server_choice import ServerAddress
from orchestrator.domain.errors import UsageError
from orchestrator.wire.api_version import API_PREFIX, API_VERSION, RESUME_HEADER, VERSION_HEADER, major
from orchestrator.wire.wire_base import ErrorBody, WireModel

CONNECT_S = 5.0
READ_S = 30.0
"""Without a byte from the server."""
STREAM_READ_S = 45.0
"""The same in a stream: three heartbeats."""
MOST_TRIES = 4
FIRST_PAUSE_S = 0.25
LONGEST_WAIT_S = 10.0
"""Between two tries."""
MOST_RESUMES = 8
"""Of a stream, one after the other without a message between them."""
LASTING_S = 60.0
"""A stream that was open for so long was one, even if it had nothing to say."""
MOST_ANSWER_BYTES = 64 << 20

Params = Mapping[str, str | int | float | Sequence[str] | None]
Model = TypeVar("Model", bound=WireModel)


@dataclass(frozen=True)
class StreamMessage:
    """One server-sent event."""

    event: str
    id: str
    data: str


class ServerRequests:
    """Requests to one server. Not thread-safe. Close it, or use it as a context."""

    def __init__(
        self, address: ServerAddress, sleep: Callable[[float], None] = time.sleep,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:  # fmt: skip
        """`transport`: another one than HTTP over TCP. Raises UsageError if the certificates cannot be read."""
        self.address, self._sleep = address, sleep
        headers = {VERSION_HEADER: API_VERSION, "User-Agent": "convoy-client"}
        if address.secret is not None:
            headers["Authorization"] = f"Bearer {address.secret}"
        self._client = httpx2.Client(
            base_url=address.url + API_PREFIX,
            headers=headers,
            timeout=httpx2.Timeout(READ_S, connect=CONNECT_S),
            verify=_certificates(address.ca_file) if address.url.startswith("https:") else True,
            transport=transport,
            trust_env=not address.is_here,
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def get(self, path: str, model: type[Model], params: Params | None = None) -> Model:
        """A message."""
        return _read(self._send("GET", path, params=params), model)

    def get_list(self, path: str, model: type[Model], params: Params | None = None) -> list[Model]:
        """A list of messages."""
        value = _json(self._send("GET", path, params=params))
        if not isinstance(value, list):
            raise UnreachableError(f"{self.address.url} answers in a way that this client does not understand")
        return [_validated(model, each) for each in value]

    def post(
        self, path: str, model: type[Model], body: WireModel | None = None, key: str | None = None,
        again: bool = False,
    ) -> Model:  # fmt: skip
        """The answer to a request that changes something. It is sent again after a lost answer if `key` (an idempotency
        key) or `again` (doing it twice does no harm) says so."""
        return _read(self._send("POST", path, body, key=key, again=again or key is not None), model)

    def put(self, path: str, model: type[Model], content: bytes) -> Model:
        """Store bytes; again is harmless."""
        return _read(self._send("PUT", path, content=content), model)

    def delete(self, path: str, model: type[Model]) -> Model:
        """Remove something; again is harmless."""
        return _read(self._send("DELETE", path), model)

    def stream(self, path: str, params: Params | None = None, after: str | None = None) -> Iterator[StreamMessage]:
        """Server-sent events, also over a lost connection, until the server says that nothing more will come. `after`:
        the id after which they begin. Raises ApiError, UnreachableError."""
        resumes, last_id = 0, after
        while True:
            began_s = time.monotonic()
            try:
                for message in self._one_stream(path, params, last_id):
                    resumes, last_id = 0, message.id or last_id
                    if message.event == "error":
                        body = _error_body(message.data)
                        raise ApiError(503 if body.code == "unavailable" else 422, body)
                    if message.event == "end":
                        yield message
                        return
                    yield message
            except (httpx2.TransportError, UnreachableError) as error:
                if resumes >= MOST_RESUMES:
                    raise UnreachableError(
                        f"the connection to {self.address.url} was lost, and {MOST_RESUMES} tries to resume failed",
                        "the run goes its way without this command: `convoy status RUN`",
                    ) from error
            except ApiError as error:
                if error.status not in (429, 503) or resumes >= MOST_RESUMES:
                    raise
            lasted = time.monotonic() - began_s > LASTING_S
            resumes = 1 if lasted else resumes + 1
            self._sleep(_pause_s(resumes, None))

    def _one_stream(self, path: str, params: Params | None, last_id: str | None) -> Iterator[StreamMessage]:
        headers = {"Accept": "text/event-stream", **({RESUME_HEADER: last_id} if last_id is not None else {})}
        timeout = httpx2.Timeout(STREAM_READ_S, connect=CONNECT_S)
        try:
            with self._client.stream("GET", path, params=_given(params), headers=headers, timeout=timeout) as response:
                if response.status_code != 200:
                    response.read()
                self._check(response)
                for event in httpx2.EventSource(response, max_event_size=MOST_ANSWER_BYTES):
                    if event.data:
                        yield StreamMessage(event.event, event.id, event.data)
        except httpx2.ConnectError as error:
            raise self._unreachable(error) from error

    def _send(
        self, method: str, path: str, body: WireModel | None = None, params: Params | None = None,
        content: bytes | None = None, key: str | None = None, again: bool = True,
    ) -> httpx2.Response:  # fmt: skip
        headers = {"Idempotency-Key": key} if key is not None else {}
        if body is not None:
            content, headers["Content-Type"] = body.model_dump_json().encode(), "application/json"
        for attempt in range(1, MOST_TRIES + 1):
            try:
                response = self._client.request(method, path, content=content, params=_given(params), headers=headers)
                self._check(response)
                return response
            except ApiError as error:
                if error.status not in (429, 503) or attempt == MOST_TRIES or not again:
                    raise
                pause_s = _pause_s(attempt, error.retry_after_s)
            except httpx2.ConnectError as error:
                raise self._unreachable(error) from error
            except httpx2.TransportError as error:
                if attempt == MOST_TRIES or not again:
                    raise self._lost(error) from error
                pause_s = _pause_s(attempt, None)
            self._sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")

    def _check(self, response: httpx2.Response) -> None:
        """Raises ApiError, or UnreachableError if this is no answer of a server of Convoy."""
        version = response.headers.get(VERSION_HEADER)
        if version is None:
            raise UnreachableError(
                f"{self.address.url} is no server of Convoy: it answered {response.status_code} "
                f"without the header {VERSION_HEADER}",
                "check the address and port; a proxy in between has to pass the path /api on",
            )
        if response.status_code < 400:
            if major(version) != major(API_VERSION):
                raise UnreachableError(
                    f"the server speaks version {version} of the API, this client {API_VERSION}",
                    "install the Convoy version of the server here",
                )
            return
        retry_after = response.headers.get("retry-after", "")
        seconds = float(retry_after) if retry_after.isdecimal() else None
        body = _error_body(response.text)
        if response.status_code == 401 and self.address.secret is None:
            body = body.model_copy(
                update={
                    "message": f"{self.address.url} needs a token, and none is known for it",
                    "hint": f"convoy login {self.address.url}, or set CONVOY_TOKEN",
                }
            )
        raise ApiError(response.status_code, body, seconds)

    def _unreachable(self, error: Exception) -> UnreachableError:
        hint = "check the address; `convoy server status` says whether the server runs"
        if isinstance(error.__cause__ or error, ssl.SSLError) or "CERTIFICATE" in str(error).upper():
            hint = "its certificate is not trusted: give the CA with --ca-file or CONVOY_CA_FILE"
        elif self.address.is_here:
            hint = "it has ended: `convoy server start` starts it; runs that are active continue without it"
        return UnreachableError(f"no server answers at {self.address.url} ({self.address.origin}): {error}", hint)

    def _lost(self, error: Exception) -> UnreachableError:
        kind = "did not answer in time" if isinstance(error, httpx2.TimeoutException) else "was lost"
        return UnreachableError(
            f"the connection to {self.address.url} {kind}: {error or type(error).__name__}",
            "it may have been done all the same: look before you repeat it",
        )


def _certificates(ca_file: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(f"the certificates in {ca_file} cannot be read: {error}") from error
    return context


def _pause_s(attempt: int, asked_s: float | None) -> float:
    """Doubles with each attempt, with jitter; or what the server asks for."""
    if asked_s is not None:
        return min(LONGEST_WAIT_S, asked_s)
    return min(LONGEST_WAIT_S, FIRST_PAUSE_S * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)


def _given(params: Params | None) -> httpx2.QueryParams:
    pairs: list[tuple[str, str | int | float | bool | None]] = []
    for name, value in (params or {}).items():
        values = [] if value is None else [value] if isinstance(value, str | int | float) else list(value)
        pairs += [(name, str(each)) for each in values]
    return httpx2.QueryParams(pairs)


def _error_body(text: str) -> ErrorBody:
    try:
        return ErrorBody.model_validate_json(text)
    except ValueError:
        return ErrorBody(code="error", message=f"the server answered {text[:200]!r}")


def _json(response: httpx2.Response) -> object:
    try:
        value: object = json.loads(response.content)
    except ValueError as error:
        raise UnreachableError(f"the answer of the server is not JSON: {error}") from error
    return value


def _read(response: httpx2.Response, model: type[Model]) -> Model:
    return _validated(model, _json(response))


def _validated(model: type[Model], value: object) -> Model:
    try:
        return model.model_validate(value)
    except ValueError as error:
        raise UnreachableError(
            f"the server answers in a way that this client does not understand: {str(error).splitlines()[0]}",
            "install the Convoy version of the server here",
        ) from None
