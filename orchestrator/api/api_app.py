"""The HTTP API of a server as an ASGI application."""

import sys
from collections.abc import Callable, Sequence

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route, compile_path
from starlette.types import ASGIApp

from orchestrator.api.access.gate import Envelope, Gate, server_failed
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
from orchestrator.store.uploads.file_store import FileStore
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
    guarded = [
        each.router()
        for each in (RunRoutes(parts), RecordRoutes(parts, StreamPool(parts.settings)), cluster, TokenRoutes(parts),
                     FileRoutes(parts))
    ]  # fmt: skip
    for router in guarded:
        app.include_router(router, prefix=API_PREFIX, dependencies=[Depends(bearer_scheme())])
    unguarded = cluster.open_router()
    app.include_router(unguarded, prefix=API_PREFIX)
    app.routes.extend(PageRoutes().routes())
    answers = HttpErrors([*guarded, unguarded])
    app.add_exception_handler(ConvoyError, answers.refused)
    app.add_exception_handler(RequestValidationError, answers.invalid)
    app.add_exception_handler(HTTPException, answers.http_error)
    app.add_exception_handler(Exception, answers.failed)
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name


class HttpErrors:
    """Every error as an `ErrorBody`."""

    def __init__(self, routers: Sequence[APIRouter]) -> None:
        routes = [route for router in routers for route in router.routes if isinstance(route, Route)]
        self._routes = [(compile_path(API_PREFIX + route.path)[0], route.methods or set()) for route in routes]

    async def refused(self, request: Request, error: Exception) -> Response:
        """An error that Convoy raises on purpose."""
        assert isinstance(error, ConvoyError)
        return refusal_of(error).response()

    async def invalid(self, request: Request, error: Exception) -> Response:
        """A value that does not fit the description of the API."""
        assert isinstance(error, RequestValidationError)
        return invalid_request(error.errors()).response()

    async def http_error(self, request: Request, error: Exception) -> Response:
        """What Starlette and FastAPI refuse by themselves: unknown paths and methods, bodies that are no text."""
        assert isinstance(error, HTTPException)
        hint, headers = "GET /api/v1/openapi.json describes the API", dict(error.headers or {})
        messages = {404: f"there is no path {request.url.path[:200]}", 400: "the body cannot be read as JSON"}
        if error.status_code == 405:
            # Starlette names the methods of the first route with this path alone.
            headers["Allow"] = ", ".join(self._methods_of(request.url.path)) or headers.get("Allow", "")
            messages[405] = f"{request.method} is not possible here, only {headers['Allow']}"
        message = messages.get(error.status_code, str(error.detail))
        return refusal(error.status_code, message, hint, headers=headers).response()

    async def failed(self, request: Request, error: Exception) -> Response:
        """A bug. Starlette raises the error again, and `Envelope` logs it."""
        return server_failed(request.scope).response()

    def _methods_of(self, path: str) -> list[str]:
        return sorted({method for pattern, methods in self._routes if pattern.match(path) for method in methods})


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
