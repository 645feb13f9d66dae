"""What a server, or the way to it, refuses."""

from orchestrator.domain.errors import ConvoyError
from orchestrator.wire.wire_base import ErrorBody

OWN_MISTAKES = frozenset(
    {
        "malformed", "unauthenticated", "forbidden", "not_found", "method_not_allowed", "conflict", "too_large",
        "unsupported_media_type", "invalid", "invalid_job", "version_mismatch",
    }
)  # fmt: skip
"""Codes that a person can act on: exit code 2."""


class ApiError(ConvoyError):
    """A server has refused a request. `code` is stable."""

    def __init__(self, status: int, body: ErrorBody, retry_after_s: float | None = None) -> None:
        """`retry_after_s`: when the server wants to be asked again."""
        super().__init__(body.message, body.hint)
        self.status, self.body, self.retry_after_s = status, body, retry_after_s
        self.exit_code = 2 if body.code in OWN_MISTAKES else 1

    @property
    def code(self) -> str:
        """For programs."""
        return self.body.code


class UnreachableError(ConvoyError):
    """No server answers at the address, or it is no server of Convoy."""
