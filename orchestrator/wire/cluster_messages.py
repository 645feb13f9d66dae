"""What client and server say about the cluster, the queues and tokens."""

from orchestrator.wire.wire_base import WireModel


class NodeView(WireModel):
    """A node of the cluster."""

    id: str
    address: str
    total: dict[str, float]
    booked: dict[str, float]
    """By runs of this server."""
    runs: dict[str, int]
    """Workers by run."""
    draining: bool
    deadline_s: float | None = None
    labels: dict[str, str] = {}


class QueueView(WireModel):
    """A queue: its share, and who is in it."""

    name: str
    weight: float
    quota: dict[str, float]
    limit: dict[str, float]
    used: dict[str, float]
    borrowed: dict[str, float]
    running: int
    waiting: list[str]
    """Ids, in the order in which they would start."""


class TokenView(WireModel):
    """A token, without its secret."""

    id: str
    name: str
    team: str
    user: str
    role: str
    """viewer, submitter or admin."""
    created_s: float
    expires_s: float | None
    last_used_s: float | None
    revoked: bool


class ServerView(WireModel):
    """Who answers."""

    version: str
    api: str
    server_id: str
    """Differs for each database: tokens and clients can tell servers apart."""
    cluster: str | None
    """Address; null while it does not answer."""
    acting: bool
    """Holds the lease on its database. Another server that has it answers too, and decides nothing."""
    started_s: float
