"""What a drill arranges in a run before it begins. Plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.domain.policy.numeric import Injection, Skip


@dataclass(frozen=True)
class NodeAddress:
    """Where one node of a local cluster is."""

    address: str
    """IPv4."""
    interface: str
    """Network interface that has the address."""
    namespace: str | None
    """File of the network namespace its processes run in; None: the driver's."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of the node, as `ray start --labels` would set them."""


@dataclass(frozen=True)
class Arranged:
    """What a drill arranges in a run beforehand."""

    injections: tuple[Injection, ...] = ()
    """Faults that workers make, each once, however often the run starts again."""
    skips: tuple[Skip, ...] = ()
    """Samples to leave out from the start."""
    nodes: tuple[NodeAddress, ...] = ()
    """A place for each node of the local cluster, the head's first; empty: all are on loopback."""
