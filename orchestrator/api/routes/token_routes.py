"""Routes of tokens; for admins, but `/tokens/self`."""

from typing import Annotated

from fastapi import APIRouter, Path, Request

from orchestrator.api.api_parts import Admin, ApiParts, Viewer, errors, holder_of
from orchestrator.domain.errors import ConflictError, NotFoundError
from orchestrator.wire.cluster_messages import TokenView
from orchestrator.wire.request_messages import NewToken, TokenRequest

TokenQuery = Annotated[
    str, Path(min_length=1, max_length=64, description="Id of a token, a unique beginning of one, or its name.")
]


class TokenRoutes:
    """`/tokens`."""

    def __init__(self, parts: ApiParts) -> None:
        self._tokens = parts.tokens

    def router(self) -> APIRouter:
        """With all routes."""
        router = APIRouter(prefix="/tokens", tags=["tokens"])
        router.add_api_route(
            "", self.create, methods=["POST"], status_code=201, responses=errors(400, 408, 409, 413)
        )  # fmt: skip
        router.add_api_route("", self.list_tokens, methods=["GET"], responses=errors())
        router.add_api_route("/self", self.own, methods=["GET"], responses=errors(404))
        router.add_api_route("/{token}", self.revoke, methods=["DELETE"], responses=errors(404, 409))
        return router

    def create(self, body: TokenRequest, caller: Admin) -> NewToken:
        """Make a token. The answer has its secret, which is shown this once."""
        return self._tokens.create(body)

    def list_tokens(self, caller: Admin) -> list[TokenView]:
        """All tokens, without their secrets."""
        return self._tokens.list()

    def own(self, request: Request, caller: Viewer) -> TokenView:
        """The token of this request."""
        mine = holder_of(request).token_id
        found = next((each for each in self._tokens.list() if each.id == mine), None)
        if found is None:
            raise NotFoundError("the token of this request was removed")
        return found

    def revoke(self, request: Request, token: TokenQuery, caller: Admin) -> TokenView:
        """Make a token invalid at once."""
        own = holder_of(request).token_id
        if token == own or any(each.id == own and each.name == token for each in self._tokens.list()):
            raise ConflictError(
                "a token cannot revoke itself: the server could be left without an admin", "use another admin's token"
            )
        return self._tokens.revoke(token)
