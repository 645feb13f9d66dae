"""Why a server's queue refuses a request, beside a mistake in the request itself (`UsageError`)."""

from orchestrator.domain.errors import ConvoyError, UsageError


class NotFoundError(UsageError):
    """There is no such run, node or token. The hint suggests near ones."""


class ForbiddenError(UsageError):
    """The caller's role or team does not permit it."""


class ConflictError(UsageError):
    """The state of the run does not permit it."""


class UnavailableError(ConvoyError):
    """The queue cannot answer now: its database is locked or full, or another server acts. Trying again may help."""
