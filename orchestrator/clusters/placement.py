"""Whether the workers fit, how many, and on which nodes. Pure; `placement_groups.reserve` applies the decisions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.domain.errors import ClusterError
from orchestrator.spec.quantities import parse_bytes
from orchestrator.spec.resources import ClusterSpec, ResourcesSpec, WorkersRange

Resources = Mapping[str, float]
EPSILON = 1e-6


@dataclass(frozen=True)
class NodeCapacity:
    """One node: `total` and `free` amounts by Ray's resource names (`CPU`, `GPU`, `memory` in bytes, custom)."""

    node_id: str
    address: str
    total: Resources
    free: Resources
    labels: Mapping[str, str] = field(default_factory=dict)
    """See `node_labels.canonical_labels`."""


@dataclass(frozen=True)
class WorkerRequest:
    """What a run asks for."""

    bundle: Resources
    """Of one worker."""
    minimum: int
    maximum: int
    placement: str
    """spread, pack, strict_spread or strict_pack."""


def request_of(spec: ResourcesSpec) -> WorkerRequest:
    """The request a job spec makes."""
    bundle: dict[str, float] = {"CPU": float(spec.cpus_per_worker)}
    if spec.gpus_per_worker:
        bundle["GPU"] = float(spec.gpus_per_worker)
    if spec.memory_per_worker is not None:
        bundle["memory"] = float(parse_bytes(spec.memory_per_worker))
    bundle.update(spec.custom)
    workers = spec.workers
    if isinstance(workers, WorkersRange):
        return WorkerRequest(bundle, workers.min, workers.max, spec.strategy)
    return WorkerRequest(bundle, workers, workers, spec.strategy)


def local_resources(spec: ResourcesSpec, cluster: ClusterSpec, host_memory_bytes: int) -> dict[str, float]:
    """What each node of a local cluster offers: its share of the workers unless `cpus_per_node` says otherwise.

    Custom resources are offered as asked for: on one machine there is nobody else to offer them.
    """
    nodes = cluster.nodes or 1
    request = request_of(spec)
    per_node = math.ceil(request.maximum / nodes)
    cpus = cluster.cpus_per_node if cluster.cpus_per_node is not None else per_node * request.bundle["CPU"]
    custom = {name: amount * per_node for name, amount in spec.custom.items()}
    return {"CPU": float(cpus), "memory": float(host_memory_bytes // nodes), **custom}


def fitting_workers(nodes: Sequence[NodeCapacity], bundle: Resources, placement: str, total: bool = False) -> int:
    """How many workers fit now (`total`: if nothing else ran)."""
    counts = [_count(node.total if total else node.free, bundle) for node in nodes]
    if placement == "strict_spread":
        return sum(1 for count in counts if count)
    if placement == "strict_pack":
        return max(counts, default=0)
    return sum(counts)


def fitting_nodes(nodes: Sequence[NodeCapacity], request: WorkerRequest) -> list[NodeCapacity]:
    """Nodes that could hold a worker if nothing else ran."""
    return [node for node in nodes if fitting_workers([node], request.bundle, "pack", total=True)]


def choose_workers(request: WorkerRequest, nodes: Sequence[NodeCapacity], global_batch: int) -> int | None:
    """The number of workers to start: as many as fit, between the bounds; None where fewer than the minimum do.

    No more than samples in a global batch: a worker without a sample would idle.
    """
    fit = fitting_workers(nodes, request.bundle, request.placement)
    return min(fit, request.maximum, max(global_batch, request.minimum)) if fit >= request.minimum else None


def can_ever_fit(request: WorkerRequest, nodes: Sequence[NodeCapacity]) -> bool:
    """Whether the nodes could hold the minimum if everything else on them ended."""
    return fitting_workers(nodes, request.bundle, request.placement, total=True) >= request.minimum


def explain(request: WorkerRequest, nodes: Sequence[NodeCapacity], waited_s: float | None = None) -> ClusterError:
    """What was asked, what the cluster has, and what would fit."""
    fit = fitting_workers(nodes, request.bundle, request.placement)
    ever = fitting_workers(nodes, request.bundle, request.placement, total=True)
    number = f"{request.minimum}" if request.minimum == request.maximum else f"at least {request.minimum}"
    how = f", placement {request.placement}" if request.placement.startswith("strict") else ""
    workers = "workers" if request.minimum != 1 else "worker"
    first = f"the cluster cannot hold {number} {workers} of {amounts_text(request.bundle)}{how}"
    if waited_s is not None:
        first = f"after {waited_s:.0f} s {first}"
    names = list(request.bundle)
    has = "; ".join(_node_line(node, names) for node in nodes[:8]) or "no node"
    more = f"; and {len(nodes) - 8} more" if len(nodes) > 8 else ""
    room = f"{fit} such worker{'s' if fit != 1 else ''} fit{'s' if fit == 1 else ''}"
    if ever > fit:
        room += f" ({ever} after other work there has ended)"
    return ClusterError(
        f"{first}. It has {len(nodes)} node{'s' if len(nodes) != 1 else ''}: {has}{more}. {room}",
        _hint(request, nodes, fit),
    )


def _hint(request: WorkerRequest, nodes: Sequence[NodeCapacity], fit: int) -> str:
    advice = []
    if fit:
        advice.append(f"resources.workers: {fit}")
    for name, key in (("CPU", "cpus_per_worker"), ("memory", "memory_per_worker")):
        smaller = _largest_amount(request, nodes, name)
        if smaller is not None:
            shown = f"{smaller:g}" if name == "CPU" else f"{int(smaller) // 2**20}MiB"
            advice.append(f"resources.{key}: {shown}")
    if request.placement.startswith("strict"):
        loose = "spread" if request.placement == "strict_spread" else "pack"
        if fitting_workers(nodes, request.bundle, loose) >= request.minimum:
            advice.append(f"resources.placement: {loose}")
    if not advice:
        missing = [n for n in request.bundle if not any(node.total.get(n, 0) > 0 for node in nodes)]
        what = f"no node offers {', '.join(missing)}; " if missing else ""
        return f"{what}add nodes, or make the workers smaller"
    return "ask for " + ", or ".join(advice)


def _largest_amount(request: WorkerRequest, nodes: Sequence[NodeCapacity], name: str) -> float | None:
    """The largest smaller amount of one resource with which the minimum of workers would fit."""
    asked = request.bundle.get(name)
    if asked is None:
        return None
    step = 1.0 if name == "CPU" else float(2**20)
    candidates = sorted(
        {
            math.floor(node.free.get(name, 0.0) / k / step) * step
            for node in nodes
            for k in range(1, request.minimum + 1)
        },
        reverse=True,
    )
    for amount in candidates:
        changed = {**request.bundle, name: amount}
        if 0 < amount < asked and fitting_workers(nodes, changed, request.placement) >= request.minimum:
            return amount
    return None


def _count(has: Resources, bundle: Resources) -> int:
    return min(
        (math.floor(has.get(name, 0.0) / need + EPSILON) for name, need in bundle.items() if need > 0), default=0
    )


def amounts_text(resources: Resources) -> str:
    """Resources for people."""
    return ", ".join(_amount(name, value) for name, value in resources.items())


def _amount(name: str, value: float) -> str:
    if name == "memory":
        return f"{value / 2**30:.3g} GiB of memory"
    if name in ("CPU", "GPU"):
        return f"{value:g} {name}{'s' if value != 1 else ''}"
    return f"{value:g} {name}"


def _node_line(node: NodeCapacity, names: Sequence[str]) -> str:
    parts = []
    for name in names:
        free, total = node.free.get(name, 0.0), node.total.get(name, 0.0)
        shown = _amount(name, free)
        parts.append(shown if free >= total - EPSILON else f"{shown} free of {_amount(name, total)}")
    return f"{node.address} ({', '.join(parts)})"


def place(nodes: Sequence[NodeCapacity], bundle: Resources, placement: str, count: int) -> list[str]:
    """A node's id for each of `count` workers, which have to fit. Spread: evenly; pack: on as few nodes as possible."""
    left = {node.node_id: _count(node.free, bundle) for node in nodes}
    if placement == "strict_spread":
        left = {node_id: min(1, room) for node_id, room in left.items()}
    if placement in ("pack", "strict_pack"):
        fullest = sorted(left, key=lambda node_id: -left[node_id])
        return [node_id for node_id in fullest for _ in range(left[node_id])][:count]
    taken = dict.fromkeys(left, 0)
    chosen: list[str] = []
    while len(chosen) < count:
        node_id = min((n for n in left if taken[n] < left[n]), key=lambda n: taken[n])
        taken[node_id] += 1
        chosen.append(node_id)
    return chosen
