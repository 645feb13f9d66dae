"""Queues and nodes as clients see them."""

from collections.abc import Collection, Mapping, Sequence

from orchestrator.control.policy.queue_facts import QueueShare
from orchestrator.control.queue_board import TickView
from orchestrator.control.queue_store.queue_table import DrainRow
from orchestrator.control.queue_store.run_rows import RunRow
from orchestrator.control.run_views import used_by
from orchestrator.domain.queue.queue_states import WAITING
from orchestrator.wire.cluster_messages import NodeView, QueueView


def queue_views(queues: Mapping[str, QueueShare], rows: Collection[RunRow], tick: TickView | None) -> list[QueueView]:
    """Every queue, by name."""
    positions = {run: outlook.position for run, outlook in tick.outlooks.items()} if tick is not None else {}
    shared = any(share.quota for share in queues.values())
    return [
        _queue(share, [row for row in rows if row.queue == name], positions, shared) for name, share in queues.items()
    ]


def _queue(share: QueueShare, rows: Sequence[RunRow], positions: Mapping[str, int], shared: bool) -> QueueView:
    used = used_by(rows)
    beyond = {name: amount - share.quota.get(name, 0.0) for name, amount in used.items()}
    waiting = sorted(
        (row for row in rows if row.state in WAITING),
        key=lambda row: (positions.get(row.id, 1 << 62), -row.priority, row.seq),
    )
    return QueueView(
        name=share.name,
        weight=share.weight,
        quota=dict(share.quota),
        limit=dict(share.limit),
        used=dict(used),
        borrowed={name: amount for name, amount in beyond.items() if amount > 0} if shared else {},
        running=sum(1 for row in rows if row.booked),
        waiting=[row.id for row in waiting],
    )


def node_views(rows: Collection[RunRow], drains: Sequence[DrainRow], tick: TickView | None) -> list[NodeView]:
    """Every node of the newest tick, then those that drain."""
    runs: dict[str, dict[str, int]] = {}
    booked: dict[str, dict[str, float]] = {}
    for row in rows:
        for node, workers in row.booked.items():
            runs.setdefault(node, {})[row.id] = workers
            amounts = booked.setdefault(node, {})
            for name, amount in row.bundle.items():
                amounts[name] = amounts.get(name, 0.0) + workers * amount
    known = {node.node_id: node for node in (tick.nodes if tick is not None else None) or ()}
    draining = {drain.node: drain for drain in drains}
    return [
        NodeView(
            id=node_id,
            address=known[node_id].address if node_id in known else "",
            total=dict(known[node_id].total) if node_id in known else {},
            booked=booked.get(node_id, {}),
            runs=runs.get(node_id, {}),
            draining=node_id in draining,
            deadline_s=draining[node_id].deadline_s if node_id in draining else None,
            labels=dict(known[node_id].labels) if node_id in known else {},
        )
        for node_id in [*known, *(node for node in draining if node not in known)]
    ]
