"""Requests beside a submission, and what is said about tokens and files."""

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.wire.cluster_messages import TokenView
from orchestrator.wire.wire_base import WireModel

Role = Literal["viewer", "submitter", "admin"]
ROLES: tuple[Role, ...] = ("viewer", "submitter", "admin")
"""Each may do what those before it may."""
Label = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]*$")]


class TokenRequest(WireModel):
    """A token to be made."""

    name: Label
    """For people: what it is for."""
    user: Label
    team: Label
    role: Role = "submitter"
    expires_in_s: float | None = Field(default=None, gt=0, le=10 * 365 * 86400.0)
    """Seconds; null: it does not expire."""


class NewToken(WireModel):
    """A token that was made. The secret is shown this once."""

    token: TokenView
    secret: str


class DrainRequest(WireModel):
    """A node to be emptied."""

    deadline_s: float | None = Field(default=None, ge=0, le=7 * 86400.0)
    """Seconds until the node goes away; null: not known."""


class FileView(WireModel):
    """An uploaded file."""

    sha256: str
    size_bytes: int
    existing: bool
    """The server had it already."""


class MissingFiles(WireModel):
    """Which files a server does not have: question and answer."""

    sha256: list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(max_length=1000)
