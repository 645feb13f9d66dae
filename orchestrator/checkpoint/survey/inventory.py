"""What the vaults hold together, and which steps can be restored from it. Pure."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Holding:
    """One rank's complete state of one step in one vault."""

    vault: str
    """Address of the vault."""
    generation: int
    rank: int
    world_size: int
    step: int
    own: bool
    """In the vault of the rank's own node, not a copy."""
    size_bytes: int = 0


@dataclass(frozen=True)
class WholeStep:
    """A step whose state is complete: every rank's state is in a vault."""

    generation: int
    step: int
    world_size: int
    places: tuple[tuple[str, ...], ...]
    """By rank: the vaults that hold its state."""

    @property
    def copies(self) -> int:
        """Copies of the rank that has the fewest."""
        return min(len(vaults) for vaults in self.places)


def whole_steps(holdings: Collection[Holding]) -> list[WholeStep]:
    """Every step that could be restored, the furthest generation and step first. Generations are never mixed."""
    found: dict[tuple[int, int, int], dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for held in holdings:
        found[held.generation, held.step, held.world_size][held.rank].append(held.vault)
    steps = [
        WholeStep(generation, step, world_size, tuple(tuple(sorted(ranks[rank])) for rank in range(world_size)))
        for (generation, step, world_size), ranks in found.items()
        if all(rank in ranks for rank in range(world_size))
    ]
    return sorted(steps, key=lambda whole: (whole.generation, whole.step), reverse=True)


def newest_whole(holdings: Collection[Holding], recorded: int | None = None) -> WholeStep | None:
    """The state to continue from: a generation continues where the previous one ended, so the latest generation wins.

    `recorded`: the last step whose report has arrived at the driver. A later step may be complete although its report
    was lost with the worker that sent it: it is recomputed for the record if an earlier state exists.
    """
    steps = whole_steps(holdings)
    on_record = [whole for whole in steps if recorded is None or whole.step <= recorded]
    return next(iter(on_record or steps), None)


def unrecoverable_nodes(holdings: Collection[Holding]) -> dict[str, int | None]:
    """For each vault, the step that could still be restored from memory if its node were lost; None if no step
    could."""
    vaults = sorted({held.vault for held in holdings})
    left: dict[str, int | None] = {}
    for vault in vaults:
        whole = newest_whole([held for held in holdings if held.vault != vault])
        left[vault] = whole.step if whole is not None else None
    return left


@dataclass(frozen=True)
class NodePlace:
    """A node as far as choosing peers goes. `labels` are the node's own, e.g. rack or zone."""

    name: str
    labels: Mapping[str, str]


SPREAD_LABELS = ("ray.io/availability-zone", "ray.io/availability-region", "zone", "rack")
"""Labels of which a peer should have another value; the more of them differ, the better."""


def choose_peers(
    nodes: Sequence[NodePlace], replicas: int, doomed: Collection[str] = frozenset()
) -> dict[str, tuple[str, ...]]:
    """For each node the nodes that keep copies of its state: never itself, other racks and zones first, evenly
    distributed.

    `doomed` (draining) nodes are used only if there are no others. The nodes are a ring; each takes, of those that
    differ most from it, the next ones that keep the fewest copies.
    """
    kept = dict.fromkeys((node.name for node in nodes), 0)
    chosen: dict[str, tuple[str, ...]] = {}
    for position, node in enumerate(nodes):
        others = [nodes[(position + distance) % len(nodes)] for distance in range(1, len(nodes))]
        ranked = sorted(
            enumerate(others),
            key=lambda entry: (entry[1].name in doomed, -_distance(node, entry[1]), kept[entry[1].name], entry[0]),
        )
        chosen[node.name] = tuple(other.name for _, other in ranked[:replicas])
        for name in chosen[node.name]:
            kept[name] += 1
    return chosen


def _distance(one: NodePlace, other: NodePlace) -> int:
    """Number of labels in which two nodes are known to differ."""
    labels = [label for label in SPREAD_LABELS if label in one.labels and label in other.labels]
    return sum(one.labels[label] != other.labels[label] for label in labels)
