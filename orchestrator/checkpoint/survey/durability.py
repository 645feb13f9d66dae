"""What would remain of a run if a node were lost now. Pure, from the contents of vaults and storage."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.checkpoint.memory.copy_totals import CopyFigures
from orchestrator.checkpoint.survey.inventory import Holding, WholeStep, newest_whole, steps_without, whole_steps
from orchestrator.json_values import (
    JsonFields,
    JsonObject,
    flag,
    integer,
    integers,
    mapping,
    number,
    objects,
    optional,
    text,
    texts,
)


@dataclass(frozen=True)
class VaultReport:
    """The answer of one node's vault to a survey."""

    node: str
    """Ray's id of the node."""
    address: str
    """`host:port` of the vault."""
    answers: bool
    held: tuple[Holding, ...] = ()
    memory_bytes: int = 0
    """Shared memory that it has taken, copies for peers included."""
    problem: str = ""
    """Why the last copy that failed did not arrive; empty if all arrived."""
    copies: CopyFigures | None = None
    """What it has taken and sent since it started; None if it does not say."""


@dataclass(frozen=True)
class ShardCopies:
    """The nodes that hold one rank's state."""

    rank: int
    own: tuple[str, ...]
    peers: tuple[str, ...]

    @property
    def copies(self) -> int:
        """On different nodes."""
        return len({*self.own, *self.peers})


@dataclass(frozen=True)
class NodeLoss:
    """One node, and what its loss would leave."""

    node: str
    host: str
    answers: bool
    memory_bytes: int
    ranks: tuple[int, ...]
    """Ranks that run on the node."""
    memory_step: int | None
    """The step that could be restored from the other nodes' memory; None if none could."""
    from_step: int
    """The step that training would continue from: that, or the newest in storage; 0 is the beginning."""
    problem: str


@dataclass(frozen=True)
class Durability:
    """How safe a run's state is at one moment. Steps are optimizer steps; None if a tier has no complete one."""

    time_s: float
    """Unix time of the survey."""
    step: int
    """The last one finished."""
    own_step: int | None
    """Newest step that is complete in the memory of the ranks' own nodes."""
    peers_step: int | None
    """Newest step of which every rank's state is complete in the memory of another node."""
    storage_step: int | None
    """Newest complete checkpoint."""
    safe_step: int
    """The step that training would continue from, at worst, after the loss of any one node; 0 is the beginning."""
    copies_step: int | None
    """The step that `shards` is about: of those in memory, the one with the most copies, the newest of these."""
    copies_min: int
    """Copies in memory of the shard that has the fewest; 0 if no step is complete."""
    shards: tuple[ShardCopies, ...]
    nodes: tuple[NodeLoss, ...]
    planned_bytes: int | None
    """Most that the vault of one node is expected to take, recoveries apart."""
    memory_kept_s: float
    """How long the vaults keep their state without a driver; 0: they end with the driver."""
    node_loss: Mapping[str, float] | None = None
    """What the loss of a node would cost at this size: `repeated_steps`, `repeated_s`, `read_s`, `copied_s`."""
    over_s: float | None = None
    """Unix time at which the driver left; None while it drives."""
    kept: bool = False
    """The driver left the vaults behind, for a resume to adopt."""

    @property
    def steps_at_risk(self) -> int:
        """Finished steps that the loss of one node could cost."""
        return max(0, self.step - self.safe_step)

    @property
    def unrecoverable(self) -> tuple[str, ...]:
        """Nodes without which nothing could be restored from memory."""
        return tuple(node.node for node in self.nodes if node.memory_step is None)

    def to_json(self) -> JsonObject:
        """`durability.json`; see `docs/files.md`."""
        return {
            **vars(self),
            "shards": [{**vars(shard), "copies": shard.copies} for shard in self.shards],
            "nodes": [dict(vars(node)) for node in self.nodes],
            "steps_at_risk": self.steps_at_risk,
            "unrecoverable": list(self.unrecoverable),
        }

    @classmethod
    def from_json(cls, value: JsonFields) -> "Durability":
        """The reverse of `to_json`. What an early version did not write may be missing. Raises JsonShapeError."""
        loss = optional(mapping, value, "node_loss")
        return cls(
            time_s=number(value, "time_s"),
            step=integer(value, "step"),
            own_step=optional(integer, value, "own_step"),
            peers_step=optional(integer, value, "peers_step"),
            storage_step=optional(integer, value, "storage_step"),
            safe_step=integer(value, "safe_step"),
            copies_step=optional(integer, value, "copies_step"),
            copies_min=integer(value, "copies_min"),
            shards=tuple(_shard(each) for each in objects(value, "shards")),
            nodes=tuple(_node(each) for each in objects(value, "nodes")),
            planned_bytes=optional(integer, value, "planned_bytes"),
            memory_kept_s=optional(number, value, "memory_kept_s") or 0.0,
            node_loss=None if not loss else {name: number(loss, name) for name in loss},
            over_s=optional(number, value, "over_s"),
            kept=optional(flag, value, "kept") or False,
        )


def _shard(value: JsonFields) -> ShardCopies:
    return ShardCopies(integer(value, "rank"), tuple(texts(value, "own")), tuple(texts(value, "peers")))


def _node(value: JsonFields) -> NodeLoss:
    return NodeLoss(
        node=text(value, "node"),
        host=text(value, "host"),
        answers=flag(value, "answers"),
        memory_bytes=integer(value, "memory_bytes"),
        ranks=tuple(integers(value, "ranks")),
        memory_step=optional(integer, value, "memory_step"),
        from_step=integer(value, "from_step"),
        problem=optional(text, value, "problem") or "",
    )


@dataclass(frozen=True)
class Surroundings:
    """Facts that a survey of the vaults does not contain."""

    time_s: float
    step: int
    storage_step: int | None
    planned_bytes: int | None
    memory_kept_s: float


def assess(reports: Collection[VaultReport], known: Surroundings) -> Durability:
    """What the vaults' answers mean. A vault that did not answer counts as if it held nothing."""
    nodes = {report.address: report.node for report in reports}
    held = [holding for report in reports for holding in report.held]
    own, peers = newest_whole([h for h in held if h.own]), newest_whole([h for h in held if not h.own])
    steps = whole_steps(held)
    shown = _most_copies(steps)
    left, storage = steps_without(nodes, steps), known.storage_step or 0
    generation = max((h.generation for h in held), default=0)
    losses = tuple(
        _loss(report, generation, left[report.address], storage)
        for report in sorted(reports, key=lambda each: each.node)
    )
    return Durability(
        time_s=known.time_s,
        step=known.step,
        own_step=None if own is None else own.step,
        peers_step=None if peers is None else peers.step,
        storage_step=known.storage_step,
        safe_step=min((loss.from_step for loss in losses), default=storage),
        copies_step=None if shown is None else shown.step,
        copies_min=0 if shown is None else shown.copies,
        shards=() if shown is None else _shards(shown, held, nodes),
        nodes=losses,
        planned_bytes=known.planned_bytes,
        memory_kept_s=known.memory_kept_s,
    )


def _most_copies(steps: Sequence[WholeStep]) -> WholeStep | None:
    """While a step's copies are on their way, the one before is what counts. Of the newest generation only."""
    return max(
        (whole for whole in steps if whole.generation == steps[0].generation),
        key=lambda whole: (whole.copies, whole.step),
        default=None,
    )


def _shards(shown: WholeStep, held: Sequence[Holding], nodes: Mapping[str, str]) -> tuple[ShardCopies, ...]:
    own = {(h.vault, h.generation, h.rank) for h in held if h.own}
    return tuple(
        ShardCopies(
            rank,
            tuple(nodes[vault] for vault in vaults if (vault, shown.generation, rank) in own),
            tuple(nodes[vault] for vault in vaults if (vault, shown.generation, rank) not in own),
        )
        for rank, vaults in enumerate(shown.places)
    )


def _loss(report: VaultReport, generation: int, memory_step: int | None, storage_step: int) -> NodeLoss:
    """`generation`: the newest. `memory_step`: the one that the other vaults hold."""
    return NodeLoss(
        node=report.node,
        host=report.address.rpartition(":")[0],
        answers=report.answers,
        memory_bytes=report.memory_bytes,
        ranks=tuple(sorted({h.rank for h in report.held if h.own and h.generation == generation})),
        memory_step=memory_step,
        from_step=max(memory_step or 0, storage_step),
        problem=report.problem,
    )
