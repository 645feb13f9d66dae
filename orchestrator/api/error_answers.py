"""What an error is over HTTP: a status, a stable code, a message and a hint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.responses import JSONResponse

from orchestrator.api.access.issued_tokens import UnauthenticatedError
from orchestrator.domain.errors import (
    ClusterError,
    ConflictError,
    ConvoyError,
    ForbiddenError,
    NotFoundError,
    UnavailableError,
    UsageError,
)
from orchestrator.spec.spec_errors import SpecError
from orchestrator.wire.api_version import INVALID_JOB
from orchestrator.wire.wire_base import ErrorBody

SHOWN_PROBLEMS = 50
"""Mistakes of one job in an answer."""
CODES = {
    400: "malformed",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "body_incomplete",
    409: "conflict",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid",
    426: "version_mismatch",
    429: "rate_limited",
    500: "internal",
    503: "unavailable",
}
"""The code of each status, if an error has none of its own."""


class TooManyStreamsError(ConvoyError):
    """So many streams are open already."""


@dataclass(frozen=True)
class HttpRefusal:
    """An error as it is sent."""

    status: int
    body: ErrorBody
    headers: Mapping[str, str]

    def response(self) -> JSONResponse:
        """For Starlette."""
        return JSONResponse(self.body.model_dump(mode="json"), self.status, dict(self.headers))


def refusal(
    status: int, message: str, hint: str | None = None, code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> HttpRefusal:  # fmt: skip
    """An error that has no exception."""
    body = ErrorBody(code=code or CODES.get(status, "error"), message=message, hint=hint)
    return HttpRefusal(status, body, headers or {})


def refusal_of(error: ConvoyError) -> HttpRefusal:
    """What an error of Convoy is over HTTP."""
    if isinstance(error, SpecError):
        return _invalid_job(error)
    headers: dict[str, str] = {}
    if isinstance(error, UnauthenticatedError):
        status, headers["WWW-Authenticate"] = 401, 'Bearer realm="convoy"'
    elif isinstance(error, UnavailableError | ClusterError):
        status, headers["Retry-After"] = 503, "2"
    elif isinstance(error, TooManyStreamsError):
        status, headers["Retry-After"] = 429, "10"
    else:
        kinds = ((NotFoundError, 404), (ForbiddenError, 403), (ConflictError, 409), (UsageError, 422))
        status = next((found for kind, found in kinds if isinstance(error, kind)), 500)
    return refusal(status, error.message, error.hint, headers=headers)


def _invalid_job(error: SpecError) -> HttpRefusal:
    first = error.problems[0]
    body = ErrorBody(
        code=INVALID_JOB,
        message=first.message,
        hint=first.hint,
        line=first.place.line,
        column=first.place.column,
        details={"problems": [problem.to_json() for problem in error.problems[:SHOWN_PROBLEMS]]},
    )
    return HttpRefusal(422, body, {})


def invalid_request(errors: Sequence[Mapping[str, object]]) -> HttpRefusal:
    """What pydantic found wrong in a request, in one sentence for each mistake. Values are not repeated: they may be
    secrets."""
    sentences = []
    for each in list(errors)[:5]:
        where = each.get("loc")
        parts = [str(part) for part in where] if isinstance(where, tuple | list) else []
        sentences.append(f"{'.'.join(parts) or 'request'}: {each.get('msg')}")
    malformed = any(each.get("type") == "json_invalid" for each in errors)
    message = "the body is not JSON: " + sentences[0] if malformed else "; ".join(sentences)
    return refusal(400 if malformed else 422, message, "GET /api/v1/openapi.json describes each request")
