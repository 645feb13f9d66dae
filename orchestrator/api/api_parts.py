"""What the routes work with, and who asks."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from orchestrator.api.access.issued_tokens import Holder, IssuedTokens, UnauthenticatedError
from orchestrator.api.api_settings import ApiSettings
from orchestrator.control.queue_service import Caller, QueueService
from orchestrator.domain.errors import ForbiddenError
from orchestrator.store.uploads.file_store import FileStore
from orchestrator.wire.request_messages import ROLES, Role
from orchestrator.wire.wire_base import ErrorBody

HOLDER = "convoy.holder"
"""Key of the ASGI scope: who asks."""

ResponseTable = dict[int | str, dict[str, object]]
"""Answers of a route by status, as FastAPI takes them."""


@dataclass(frozen=True)
class ApiParts:
    """What a server is made of."""

    service: QueueService
    tokens: IssuedTokens
    files: FileStore
    settings: ApiSettings


def holder_of(request: Request) -> Holder:
    """Who asks, as the gate found out. Raises UnauthenticatedError."""
    found = request.scope.get(HOLDER)
    if not isinstance(found, Holder):
        raise UnauthenticatedError("this needs a token", "send `Authorization: Bearer TOKEN`")
    return found


def _at_least(request: Request, role: Role) -> Caller:
    """The caller, if the role permits it. Raises ForbiddenError."""
    caller = holder_of(request).caller
    if caller.role not in ROLES or list(ROLES).index(caller.role) < ROLES.index(role):
        raise ForbiddenError(
            f"this needs the role {role}, and the token of {caller.user} has the role {caller.role}",
            "an admin makes tokens: `convoy token create --role`",
        )
    return caller


async def viewer(request: Request) -> Caller:
    """A caller who may read."""
    return _at_least(request, "viewer")


async def submitter(request: Request) -> Caller:
    """A caller who may submit and control runs."""
    return _at_least(request, "submitter")


async def admin(request: Request) -> Caller:
    """A caller who may do everything."""
    return _at_least(request, "admin")


Viewer = Annotated[Caller, Depends(viewer)]
Submitter = Annotated[Caller, Depends(submitter)]
Admin = Annotated[Caller, Depends(admin)]


def bearer_scheme() -> HTTPBearer:
    """For the OpenAPI document; the gate has checked the token before."""
    return HTTPBearer(auto_error=False, scheme_name="token", description="A token of `convoy token create`.")


ERROR_TEXTS = {
    400: "The body cannot be read.",
    401: "There is no valid token in the request.",
    403: "The role or team does not permit it.",
    404: "There is no such run, node, token or file.",
    408: "The body did not arrive in time, or was cut off.",
    409: "The state does not permit it.",
    413: "The body or file is too large.",
    422: "A value is wrong, or the job has a mistake.",
    426: "The client has another major version of the API.",
    429: "Too many requests or streams: see Retry-After.",
    503: "The database is locked or full, or another server acts.",
}


def errors(*statuses: int) -> ResponseTable:
    """The documented errors of a route: those that every route has, and `statuses`."""
    every = sorted({401, 403, 422, 426, 429, 503, *statuses})
    return {status: {"model": ErrorBody, "description": ERROR_TEXTS[status]} for status in every}
