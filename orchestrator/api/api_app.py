"""The HTTP API of a server as an ASGI application."""

import sys
from collections.abc import Callable

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import ASGIApp

from orchestrator.api.access.gate import Envelope, Gate
from orchestrator.api.access.issued_tokens import IssuedTokens
from orchestrator.api.api_parts import ApiParts, bearer_scheme
from orchestrator.api.api_settings import ApiSettings
from orchestrator.api.error_answers import invalid_request, refusal, refusal_of
from orchestrator.api.routes.cluster_routes import ClusterRoutes
from orchestrator.api.routes.file_routes import FileRoutes
from orchestrator.api.routes.page_routes import PageRoutes
from orchestrator.api.routes.record_routes import RecordRoutes
from orchestrator.api.routes.run_routes import RunRoutes
from orchestrator.api.routes.token_routes import TokenRoutes
from orchestrator.api.streams import StreamPool
from orchestrator.control.queue_service import QueueService
from orchestrator.domain.errors import ConvoyError
from orchestrator.store.file_store import FileStore
from orchestrator.wire.api_version import API_PREFIX, API_VERSION

Log = Callable[[str], None]


def create_app(
    service: QueueService, tokens: IssuedTokens, files: FileStore, settings: ApiSettings, log: Log | None = None
) -> ASGIApp:
    """The API with everything that a request passes first. `log` gets a line for each failure of the server itself."""
    app = routed_app(ApiParts(service, tokens, files, settings))
    return Envelope(Gate(app, tokens, settings), log or _print)


def routed_app(parts: ApiParts) -> FastAPI:
    """The routes alone."""
    app = FastAPI(
        title="Convoy",
        version=API_VERSION,
        description="A durable queue of training runs on one Ray cluster.",
        openapi_url=f"{API_PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=_operation_id,
    )
    cluster = ClusterRoutes(parts)
    guarded = [Depends(bearer_scheme())]
    for routes in (RunRoutes(parts), RecordRoutes(parts, StreamPool(parts.settings)), cluster, TokenRoutes(parts),
                   FileRoutes(parts)):  # fmt: skip
        app.include_router(routes.router(), prefix=API_PREFIX, dependencies=guarded)
    app.include_router(cluster.open_router(), prefix=API_PREFIX)
    app.routes.extend(PageRoutes().routes())
    app.add_exception_handler(ConvoyError, _convoy_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name


async def _convoy_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ConvoyError)
    return refusal_of(error).response()


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return invalid_request(error.errors()).response()


async def _http_error(request: Request, error: Exception) -> Response:
    """What Starlette and FastAPI refuse by themselves: unknown paths and methods, bodies that are no text."""
    assert isinstance(error, HTTPException)
    hint, headers = "GET /api/v1/openapi.json describes the API", dict(error.headers or {})
    messages = {404: f"there is no path {request.url.path[:200]}", 400: "the body cannot be read as JSON"}
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods_of(request))
        messages[405] = f"{request.method} is not possible here, only {headers['Allow']}"
    message = messages.get(error.status_code, str(error.detail))
    answer: JSONResponse = refusal(error.status_code, message, hint, headers=headers).response()
    return answer


def _methods_of(request: Request) -> list[str]:
    """All methods of a path: Starlette names those of the first route that fits."""
    found: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            found |= set(getattr(route, "methods", None) or ())
    return sorted(found)


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
