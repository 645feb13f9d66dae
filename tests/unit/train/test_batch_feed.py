import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.domain.ranks.rank_report import PhaseTimes, RankMemory
from orchestrator.domain.session import Leave
from orchestrator.planner.batch_shape import shape_batch
from orchestrator.train.batch_feed import DEPTH, Feed, build_step, rows
from orchestrator.train.collectives.exchange import RankStep
from orchestrator.train.models.tasks import CausalLM
from tests.unit.train.builders import samples_of

pytestmark = pytest.mark.unit

TASK = CausalLM(pad_id=1)


class Positions:
    """A dataset whose sample at a position is known from the position; it records what was asked for."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.fail_at = fail_at
        self.asked: list[int] = []

    def train(self, first_position: int, count: int) -> Any:
        self.asked.append(first_position)
        if self.fail_at is not None and first_position >= self.fail_at:
            raise OSError(f"token file of position {first_position} is gone")
        samples = samples_of(*[[10 + p % 50, 11 + p % 50, 12] for p in range(first_position, first_position + count)])
        return rows(samples, 0, count)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_shares_and_micro_batches_cover_the_batch_once(world_size: int) -> None:
    shape = shape_batch(10, world_size, 2)
    dataset: Any = Positions()
    built = [build_step(dataset, TASK, shape, rank, step=3, position=20) for rank in range(world_size)]
    seen = [
        int(token)
        for step in built
        for batch in step.micro_batches
        for token in batch.inputs["input_ids"][: batch.samples, 0]
    ]
    assert seen == [10 + p % 50 for p in range(20, 30)]
    assert sum(step.targets for step in built) == 20
    assert {len(step.micro_batches) for step in built} == {shape.accumulation}
    assert sum(step.digest for step in built) % 2**62 == dataset.train(20, 10).digest() or world_size > 1


def test_a_used_up_share_feeds_empty_micro_batches() -> None:
    shape = shape_batch(5, 2, 1)
    step = build_step(Positions(), TASK, shape, 1, step=1, position=0)  # type: ignore[arg-type]
    assert [batch.samples for batch in step.micro_batches] == [1, 1, 0]


def feed(dataset: Positions, steps: range, position: int = 0) -> Feed:
    begins = ((step, position + 4 * index) for index, step in enumerate(steps))
    return Feed(dataset, TASK, shape_batch(4, 1, None), 0, begins, pin=False)  # type: ignore[arg-type]


def test_steps_come_in_order_from_the_position_given() -> None:
    source = feed(Positions(), range(6, 9), position=40)
    taken = [source.take() for _ in range(3)]
    source.close()
    assert [step.step for step in taken] == [6, 7, 8]
    assert [step.first_position for step in taken] == [40, 44, 48]


def test_it_does_not_run_far_ahead_and_ends_when_closed() -> None:
    dataset = Positions()
    source = feed(dataset, range(1, 1000))
    source.take()
    source.close()
    source.close()
    # One taken, DEPTH waiting, one in the thread's hand.
    assert len(dataset.asked) <= DEPTH + 2
    assert not [thread for thread in threading.enumerate() if thread.name == "convoy-feed"]


def test_an_error_of_the_thread_is_raised_where_the_step_is_taken() -> None:
    source = feed(Positions(fail_at=4), range(1, 10))
    assert source.take().step == 1
    with pytest.raises(OSError, match="position 4 is gone"):
        source.take()
    source.close()


def test_targets_of_the_next_step_are_told_before_it_is_taken() -> None:
    source = feed(Positions(fail_at=8), range(1, 10))
    assert source.take().step == 1
    deadline = time.monotonic() + 10.0
    while (ahead := source.targets_ahead()) is None and time.monotonic() < deadline:
        time.sleep(0.001)
    assert source.targets_ahead() == ahead
    following = source.take()
    assert (following.step, following.targets) == (2, ahead)
    for thread in threading.enumerate():
        if thread.name == "convoy-feed":
            thread.join(timeout=10.0)
    assert source.targets_ahead() is None, "an error is raised where the step is taken"
    with pytest.raises(OSError, match="position 8 is gone"):
        source.take()
    source.close()


def test_facts_of_a_rank_survive_the_exchange_exactly() -> None:
    facts = RankStep(
        loss_sum=1234.56789012345,
        targets=1_000_003,
        tokens=1_000_007,
        samples=12,
        digest=2**62 - 3,
        phases=PhaseTimes(0.1, 0.2, 0.3, 0.4, 0.0, 0.5),
        memory=RankMemory(rss_bytes=2**50 + 1, peak_rss_bytes=2**50 + 3, allocated_bytes=0, reserved_bytes=7),
        leave=Leave.REGROUP,
        save=True,
        replicated_step=-2,
        step_s=1.5,
        targets_ahead=-1,
    )
    vector = torch.tensor(facts.pack(), dtype=torch.float64)
    assert RankStep.unpack(vector.tolist()) == facts
    assert RankStep.unpack(vector.tolist()).memory.peak_allocated_bytes is None


def test_rows_are_views() -> None:
    samples = samples_of([1, 2], [3, 4], [5, 6])
    part = rows(samples, 1, 3)
    assert np.shares_memory(part.tokens, samples.tokens)
    assert part.ids.tolist() == [1, 2]


def test_memory_of_this_process() -> None:
    from orchestrator.train.engine.process_memory import rank_memory

    memory = rank_memory(torch.device("cpu"))
    resident_kib = next(
        int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")
    )
    assert memory.rss_bytes == pytest.approx(resident_kib * 1024, rel=0.1)
    assert memory.peak_rss_bytes >= memory.rss_bytes
    assert memory.allocated_bytes is None
