"""What the ledger says about a run: worker-seconds by class, node and incident, and what follows from them. Pure.

`ledger.json` has it, and `convoy show --json` and `convoy goodput --json` print it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.domain.events import RecoveryReason
from orchestrator.goodput.time_class import LossCause, TimeClass
from orchestrator.json_values import JsonFields, JsonObject, integer, mapping, number, objects, optional, text

LEDGER_VERSION = 2
"""Of `ledger.json`. Version 1 had wall-clock seconds by category, and no version."""

Seconds = Mapping[TimeClass, float]
"""Worker-seconds by class; a class that is missing has none."""


@dataclass(frozen=True)
class NodeTime:
    """The workers of one node."""

    node: str
    """Address."""
    node_id: str
    """Id in the cluster: several nodes can share an address. Empty if it is not known."""
    workers: int
    """Workers that are reserved there now."""
    seconds: Seconds
    caused_s: float
    """Worker-seconds of the whole run that were lost because of a worker of this node: its failures, and steps in which
    it was the slowest."""
    lost_usd: float | None = None
    """What the lost time of these workers cost."""


@dataclass(frozen=True)
class IncidentTime:
    """What one recovery cost, or the resume after the loss of a driver."""

    incident: int | None
    """Number of the recovery in the run, as in `incidents/`; None: a driver was lost, which has no page."""
    reason: RecoveryReason
    cause: str
    """For people."""
    rank: int | None
    node: str | None
    """Address of the node of the worker that was lost."""
    began_s: float
    """Unix seconds: the last sign of life."""
    seconds: Seconds
    steps_recomputed: int
    lost_usd: float | None = None

    @property
    def lost_s(self) -> float:
        """Worker-seconds of all classes."""
        return sum(self.seconds.values())

    def to_json(self) -> JsonObject:
        """A JSON object; the reverse of `incident_from`."""
        return {**vars(self), "reason": self.reason.value, "seconds": _known(self.seconds)}


@dataclass(frozen=True)
class Cost:
    """Money, in US dollars. An hour of a node is divided among its workers by their time."""

    spent_usd: float
    usd_per_million_tokens: float | None
    """Of tokens in steps that count; None before the first."""
    lost_usd: Mapping[LossCause, float]


@dataclass(frozen=True)
class LedgerResult:
    """The ledger of a run at one moment. `seconds` add up to `reserved_s`."""

    time_s: float
    """Unix seconds of that moment."""
    elapsed_s: float
    """Wall-clock seconds of the run while it had a driver, over all of its drivers."""
    reserved_s: float
    """Worker-seconds from reservation to release: the integral of the number of reserved workers over time."""
    workers: int
    """Workers that are reserved now."""
    seconds: Seconds
    """Worker-seconds by class."""
    goodput: float
    """Runtime goodput, 0 to 1: see `goodput_ratio`."""
    ettr: float
    """Effective training time ratio, 0 to 1: see `ettr_ratio`."""
    gpu_hours: float
    """Reserved hours of GPUs; 0 on CPUs."""
    tokens: int
    """Of steps that count."""
    lost_s: Mapping[LossCause, float] = field(default_factory=dict)
    """Worker-seconds that were not productive, by cause."""
    by_node: tuple[NodeTime, ...] = ()
    by_incident: tuple[IncidentTime, ...] = ()
    """The newest, in order."""
    cost: Cost | None = None
    """None if the job does not say what a worker costs."""

    def to_json(self) -> JsonObject:
        """For files and programs. Classes without time are left out."""
        return {
            "v": LEDGER_VERSION,
            "time_s": self.time_s,
            "elapsed_s": self.elapsed_s,
            "reserved_s": self.reserved_s,
            "workers": self.workers,
            "seconds": _known(self.seconds),
            "goodput": self.goodput,
            "ettr": self.ettr,
            "gpu_hours": self.gpu_hours,
            "tokens": self.tokens,
            "lost_s": _known(self.lost_s),
            "by_node": [{**vars(node), "seconds": _known(node.seconds)} for node in self.by_node],
            "by_incident": [each.to_json() for each in self.by_incident],
            "cost": None if self.cost is None else {**vars(self.cost), "lost_usd": _known(self.cost.lost_usd)},
        }

    @classmethod
    def from_json(cls, value: JsonFields) -> "LedgerResult":
        """Raises JsonShapeError, for a ledger of version 1 too."""
        cost = optional(mapping, value, "cost")
        return cls(
            time_s=number(value, "time_s"),
            elapsed_s=number(value, "elapsed_s"),
            reserved_s=number(value, "reserved_s"),
            workers=integer(value, "workers"),
            seconds=seconds_from(mapping(value, "seconds")),
            goodput=number(value, "goodput"),
            ettr=number(value, "ettr"),
            gpu_hours=number(value, "gpu_hours"),
            tokens=integer(value, "tokens"),
            lost_s=_causes_from(mapping(value, "lost_s")),
            by_node=tuple(_node_from(each) for each in objects(value, "by_node")),
            by_incident=tuple(incident_from(each) for each in objects(value, "by_incident")),
            cost=None if cost is None else _cost_from(cost),
        )


def seconds_from(value: JsonFields) -> dict[TimeClass, float]:
    """Worker-seconds by class. Classes of a later version are ignored. Raises JsonShapeError."""
    return {TimeClass(name): number(value, name) for name in value if name in _CLASSES}


def _causes_from(value: JsonFields) -> dict[LossCause, float]:
    return {LossCause(name): number(value, name) for name in value if name in _CAUSES}


def _node_from(value: JsonFields) -> NodeTime:
    return NodeTime(
        text(value, "node"),
        text(value, "node_id"),
        integer(value, "workers"),
        seconds_from(mapping(value, "seconds")),
        number(value, "caused_s"),
        optional(number, value, "lost_usd"),
    )


def incident_from(value: JsonFields) -> IncidentTime:
    """Raises JsonShapeError."""
    reason = text(value, "reason")
    return IncidentTime(
        incident=optional(integer, value, "incident"),
        reason=RecoveryReason(reason) if reason in _REASONS else RecoveryReason.UNKNOWN,
        cause=text(value, "cause"),
        rank=optional(integer, value, "rank"),
        node=optional(text, value, "node"),
        began_s=number(value, "began_s"),
        seconds=seconds_from(mapping(value, "seconds")),
        steps_recomputed=integer(value, "steps_recomputed"),
        lost_usd=optional(number, value, "lost_usd"),
    )


def _cost_from(value: JsonFields) -> Cost:
    per_million = optional(number, value, "usd_per_million_tokens")
    return Cost(number(value, "spent_usd"), per_million, _causes_from(mapping(value, "lost_usd")))


def _known(values: Mapping[TimeClass, float] | Mapping[LossCause, float]) -> JsonObject:
    return {name.value: amount for name, amount in values.items() if amount}


_CLASSES = frozenset(TimeClass)
_CAUSES = frozenset(LossCause)
_REASONS = frozenset(RecoveryReason)
