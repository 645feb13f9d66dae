"""What workers of a `zero_gang.Gang` do to see whether a snapshot that is copied late holds the state it is of."""

import threading
from typing import Any

from orchestrator.domain.session import VaultAccess
from tests.cluster.zero_gang import GLOBAL_BATCH, VOCABULARY, Setup, build, train

LATE_S = 0.1


def late_snapshot_differs(setup: Setup, access: VaultAccess, fenced: bool = True) -> tuple[list[str], float]:
    """Take a snapshot after two steps, copy it when all of the next step but its update has been computed, and compare.

    Returns what differs from the state as it was after the two steps, and the seconds that the fence waited.
    """
    import torch
    import torch.distributed as dist

    from orchestrator.train.engine.engine import destroy_engine
    from orchestrator.train.snapshot.snapshots import Snapshots
    from orchestrator.train.snapshot.staging import BackgroundStaging
    from orchestrator.train.zero.zero_state import EngineState

    go = threading.Event()

    class Late(BackgroundStaging):
        def _complete(self, job: Any) -> str | None:
            assert go.wait(10.0)
            return super()._complete(job)

    engine = build(setup)
    train(engine, 0, 2)
    snapshots = Snapshots(engine, access, dist.get_rank(), dist.get_world_size(), staging=Late())
    snapshots.prepare()
    assert snapshots._asking is not None
    snapshots._asking.join(10.0)
    assert snapshots.problem is None, snapshots.problem
    before = EngineState(engine).capture()
    expected = [flat.tensor.clone() for flat in before.flats]
    snapshots.take(2, 2 * GLOBAL_BATCH, {})
    assert not snapshots.settled
    cell = snapshots._cell
    assert cell is not None
    slot = cell.older_slot()

    draws = torch.Generator().manual_seed(77)
    micro_batch = GLOBAL_BATCH // dist.get_world_size() // setup.accumulation
    for micro_step in range(setup.accumulation):
        part = torch.randint(0, VOCABULARY, (micro_batch, 16), generator=draws)
        engine.backward(engine(input_ids=part, labels=part).loss)
        if micro_step < setup.accumulation - 1:
            engine.step()
    engine.module.get_buffer("steps_seen").add_(1)  # as a batch norm counts
    assert cell.step(slot) == -1
    threading.Timer(LATE_S, go.set).start()
    if fenced:
        snapshots.fence()
    engine.step()
    snapshots.flush()
    assert snapshots.problem is None, snapshots.problem
    assert cell.step(slot) == 2

    changed = [
        not torch.equal(flat.tensor, was)
        for flat, was in zip(EngineState(engine).capture().flats, expected, strict=True)
    ]
    assert any(changed), "the update changed nothing: nothing is proved"
    differing = [
        f"{before.flats[chunk.flat].kind} {before.flats[chunk.flat].fragments[0].name}"
        for chunk, target in zip(snapshots._chunks, snapshots._targets[slot], strict=True)
        if not torch.equal(target, expected[chunk.flat][chunk.first : chunk.last])
    ]
    waited_s = snapshots.stalled_s()
    snapshots.close()
    destroy_engine(engine)
    return differing, waited_s
