"""Grafana's HTTP API, as far as it takes to install dashboards and alert rules.

Documented at https://grafana.com/docs/grafana/latest/developers/http_api/: folder, dashboard, data_source,
alerting_provisioning. Requests are bounded in time, their answers in size. The token goes to the given address alone: a
redirect is not followed.
"""

import http.client
import json
import time
import urllib.error
import urllib.request
from email.message import Message
from enum import StrEnum
from typing import IO
from urllib.parse import quote, urlsplit

from orchestrator.domain.errors import ConvoyError, UsageError
from orchestrator.json_values import JsonObject, JsonValue

TIMEOUT_S = 15.0
"""From a request to the end of its answer."""
MAX_ANSWER_BYTES = 32 << 20
CHUNK_S_BYTES = 64 * 1024
SHOWN_ANSWER_CHARS = 300


class GrafanaError(ConvoyError):
    """Grafana did not do what was asked, and that is not the user's mistake."""


class Method(StrEnum):
    """Of a request."""

    GET = "GET"
    POST = "POST"
    PUT = "PUT"


class GrafanaApi:
    """One Grafana, as one user."""

    def __init__(self, url: str, token: str, timeout_s: float = TIMEOUT_S) -> None:
        """`url`: of Grafana's start page. Raises UsageError if it is none."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            hint = "for example https://grafana.example.com, without a user in it"
            raise UsageError(f"{url!r} is not the URL of a Grafana", hint=hint)
        self.url = url.rstrip("/")
        self._token, self._timeout_s = token, timeout_s
        self._opener = urllib.request.build_opener(_NoRedirects())

    def get(self, path: str) -> JsonValue:
        """What is at a path below `/api`; None if there is nothing (404). Raises as `send` does."""
        return self._request(Method.GET, path, None, may_lack=True)

    def send(self, method: Method, path: str, body: JsonValue, headers: dict[str, str] | None = None) -> JsonValue:
        """Create or replace something. Raises UsageError if Grafana refuses the token or does not know the path,
        GrafanaError for anything else that it does not do."""
        return self._request(method, path, body, headers=headers or {})

    def _request(
        self,
        method: Method,
        path: str,
        body: JsonValue,
        may_lack: bool = False,
        headers: dict[str, str] | None = None,
    ) -> JsonValue:
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"{self.url}/api{path}", data, method=method.value)
        request.add_header("Accept", "application/json")
        request.add_header("Authorization", f"Bearer {self._token}")
        if data is not None:
            request.add_header("Content-Type", "application/json")
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        deadline = time.monotonic() + self._timeout_s
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                return self._parsed(_read(response, deadline))
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 404 and may_lack and not _is_page(error.headers):
                    return None
                raise self._refused(error.code, _read_some(error, deadline), path, error.headers) from None
        except (TimeoutError, urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, TimeoutError):
                raise GrafanaError(
                    f"{self.url} does not answer {method} /api{path} within {self._timeout_s:g} s"
                ) from error
            raise GrafanaError(f"{self.url} cannot be reached: {reason}") from error

    def _parsed(self, data: bytes) -> JsonValue:
        try:
            value: JsonValue = json.loads(data) if data else {}
        except ValueError as error:
            raise self._no_grafana() from error
        return value

    def _no_grafana(self) -> UsageError:
        hint = "give the URL of Grafana's start page; a login page in front of it (a proxy) answers in its place"
        return UsageError(f"what answers at {self.url} is not the API of Grafana", hint=hint)

    def _refused(self, code: int, data: bytes, path: str, headers: Message) -> ConvoyError:
        message, status = _explained(data)
        said = f" ({message})" if message else ""
        if code in (301, 302, 303, 307, 308):
            return UsageError(f"{self.url} redirects to {headers.get('Location')}", hint="give that address instead")
        if code == 401:
            hint = "is it the token of a service account of this Grafana, and has it not expired?"
            return UsageError(f"Grafana at {self.url} does not accept the token{said}", hint=hint)
        if code == 403:
            hint = "the service account needs the role Editor, or permissions on folders, dashboards and alert rules"
            return UsageError(f"the token may not use /api{path}{said}", hint=hint)
        if code == 404 and _is_page(headers):
            return self._no_grafana()
        if code == 404:
            return UsageError(f"Grafana at {self.url} has no /api{path}{said}", hint="is it Grafana 11 or later?")
        if code == 412:
            return GrafanaError(f"Grafana keeps what it has: {status or 'precondition failed'}{said}")
        return GrafanaError(f"Grafana answers {code} to /api{path}{said}")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        """Never."""


def part(text: str) -> str:
    """Text as one part of a path."""
    return quote(text, safe="")


def _is_page(headers: Message) -> bool:
    """Something for people, which the API never sends. That there is nothing, it says with or without JSON."""
    return headers.get_content_type() == "text/html"


def _read(response: http.client.HTTPResponse, deadline_s: float) -> bytes:
    """Raises GrafanaError if it is too large, TimeoutError if it takes too long: each piece may come in time, and the
    whole not."""
    data = b""
    while chunk := response.read1(CHUNK_S_BYTES):
        data += chunk
        if len(data) > MAX_ANSWER_BYTES:
            raise GrafanaError(f"the answer of Grafana is larger than {MAX_ANSWER_BYTES >> 20} MiB")
        if time.monotonic() >= deadline_s:
            raise TimeoutError
    return data


def _read_some(error: urllib.error.HTTPError, deadline_s: float) -> bytes:
    """The beginning of what an error says."""
    try:
        return error.read(CHUNK_S_BYTES) if time.monotonic() < deadline_s else b""
    except OSError:
        return b""


def _explained(data: bytes) -> tuple[str, str]:
    """`message` and `status` of an error's JSON."""
    try:
        value = json.loads(data)
    except ValueError:
        return "", ""
    found: JsonObject = value if isinstance(value, dict) else {}
    message = " ".join(str(found.get("message") or "").split())[:SHOWN_ANSWER_CHARS]
    return message, str(found.get("status") or "")
