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

    @property
    def sole_vaults(self) -> frozenset[str]:
        """Vaults without which the state would not be complete: each is the only one that holds some rank's."""
        return frozenset(vaults[0] for vaults in self.places if len(set(vaults)) == 1)


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


def newest_whole(holdings: Collection[Holding]) -> WholeStep | None:
    """The newest complete step. A generation continues where the previous one ended, so the latest generation wins."""
    return next(iter(whole_steps(holdings)), None)


def steps_without(vaults: Collection[str], steps: Sequence[WholeStep]) -> dict[str, int | None]:
    """For each of the vaults, the step that could still be restored from memory if its node were lost; None if no step
    could. `steps`: see `whole_steps`. Takes time in proportion to what the vaults hold."""
    needed = [(whole.step, whole.sole_vaults) for whole in steps]
    return {vault: next((step for step, sole in needed if vault not in sole), None) for vault in vaults}


@dataclass(frozen=True)
class NodePlace:
    """A node, for the choice of peers."""

    name: str
    domain: str | None
    """Nodes of one failure domain (a rack, a zone) are likely to be lost together; None: not known."""


MOST_COPIES = 2
"""A node keeps at most this many times as many copies as it has copies elsewhere, so that a small domain does not have
to hold the state of a large one."""


def choose_peers(
    nodes: Sequence[NodePlace], replicas: int, doomed: Collection[str] = frozenset()
) -> dict[str, tuple[str, ...]]:
    """For each node the nodes that keep copies of its state: never itself, other failure domains first, evenly.

    `doomed` nodes, which are about to go, are chosen only if there is no other. The nodes form a ring in which domains
    alternate. Each takes the next nodes that keep the fewest copies, of domains that hold nothing of it yet.
    """
    ring = _interleaved(nodes)
    kept = {node.name: 0 for node in ring}
    chosen: dict[str, tuple[str, ...]] = {}
    for position, node in enumerate(ring):
        others = [*ring[position + 1 :], *ring[:position]]
        taken: list[NodePlace] = []
        for _ in range(min(replicas, len(others))):
            peer = _best_peer(node, others, taken, kept, MOST_COPIES * replicas, doomed)
            taken.append(peer)
            kept[peer.name] += 1
        chosen[node.name] = tuple(peer.name for peer in taken)
    return {node.name: chosen[node.name] for node in nodes}


def _interleaved(nodes: Sequence[NodePlace]) -> list[NodePlace]:
    """In the order that they have within their domains, so that neighbours are of different ones."""
    before: dict[str | None, int] = defaultdict(int)
    ranked = []
    for node in nodes:
        ranked.append((before[node.domain], node))
        before[node.domain] += 1
    return [node for _, node in sorted(ranked, key=lambda entry: entry[0])]


def _best_peer(
    node: NodePlace,
    others: Sequence[NodePlace],
    taken: Sequence[NodePlace],
    kept: Mapping[str, int],
    most: int,
    doomed: Collection[str],
) -> NodePlace:
    """The next of `others`, in their order, that is best for a copy beside those that are `taken`."""
    used = {peer.domain for peer in taken}
    names = {peer.name for peer in taken}
    apart = any(other.domain not in (None, node.domain) for other in others) and node.domain is not None
    fewest = min(kept[other.name] for other in others if other.name not in names)
    ideal = (False, False, not apart, False, fewest)
    best: tuple[tuple[bool, bool, bool, bool, int], NodePlace] | None = None
    for other in others:
        if other.name in names:
            continue
        known = other.domain is not None and node.domain is not None
        same = not known or other.domain == node.domain
        count = kept[other.name]
        rank = (other.name in doomed, count >= most, same, known and other.domain in used, count)
        if best is None or rank < best[0]:
            best = rank, other
            if rank == ideal:
                break
    assert best is not None  # there are more others than copies
    return best[1]


DEFAULT_DOMAINS = ("rack", "zone")
"""Labels that may name a failure domain, in this order. They are made by `clusters.node_labels`."""


def failure_domains(labels: Mapping[str, Mapping[str, str]], asked: str | None) -> dict[str, str]:
    """The failure domain of each node that has one, from the nodes' labels by id.

    The domain is the value of the label that is `asked` for, else of the first of `DEFAULT_DOMAINS`, that has at least
    two values among these nodes. Racks of different zones are different racks, whatever their names.
    """
    for key in (asked,) if asked is not None else DEFAULT_DOMAINS:
        found = {node: of_node[key] for node, of_node in labels.items() if of_node.get(key)}
        if key == "rack":
            found = {node: f"{labels[node].get('zone', '')}/{rack}" for node, rack in found.items()}
        if len(set(found.values())) > 1:
            return found
    return {}


def domain_warning(labels: Mapping[str, Mapping[str, str]], asked: str | None) -> str | None:
    """Why copies cannot be spread over the failure domains that a job asks for; None if they can."""
    if asked is None or failure_domains(labels, asked):
        return None
    values = {of_node[asked] for of_node in labels.values() if of_node.get(asked)}
    if values:
        why = f"all nodes that have the label have the value {values.pop()!r}"
    else:
        there = sorted({name for of_node in labels.values() for name in of_node})
        why = f"no node has the label; the nodes have {', '.join(there) or 'none'}"
    return f"checkpoint.failure_domain: {asked}: {why}. Copies of the state are spread over nodes only"
