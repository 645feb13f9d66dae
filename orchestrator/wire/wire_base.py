"""The base of all messages."""

from pydantic import BaseModel, ConfigDict


class WireModel(BaseModel):
    """Immutable; unknown fields are ignored, so that a newer server can talk to an older client."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ErrorBody(WireModel):
    """Every answer that is not a success."""

    code: str
    """For programs: `not_found`, `invalid`, `forbidden`, `conflict`, `too_large`, `rate_limited`, `unavailable`, ..."""
    message: str
    hint: str | None = None
    line: int | None = None
    column: int | None = None
    """Of a mistake in a job."""
    details: dict[str, object] = {}
