"""What tests of several packages need."""

from collections.abc import Callable

import pytest
from hypothesis import settings

from orchestrator.domain.ranks.rank_report import PhaseTimes, RankMemory, RankReport
from orchestrator.domain.ranks.rank_summary import summarise
from orchestrator.domain.step_report import StepReport

# How long an example takes depends on what else the machine does.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


@pytest.fixture
def report() -> Callable[..., StepReport]:
    """Make the report of a step, of two workers unless said."""

    def make(
        step: int, time_s: float = 100.0, step_time_s: float = 1.0, data_wait_s: float = 0.1, world_size: int = 2
    ) -> StepReport:
        phases = PhaseTimes(data_wait_s=data_wait_s, forward_s=0.3, backward_s=0.4, optimizer_s=0.1, checkpoint_s=0.0)
        ranks = tuple(
            RankReport(rank, 6, 384, phases, RankMemory(rss_bytes=1000 + rank, peak_rss_bytes=2000 + rank))
            for rank in range(world_size)
        )
        return StepReport(
            step=step, time_s=time_s, epoch=0.5, loss=8.0 / step, grad_norm=1.5, lr=1e-3, tokens=768,
            target_tokens=756, samples=12, first_position=12 * (step - 1), data_digest=7, step_time_s=step_time_s,
            tokens_per_s=768 / step_time_s, tokens_per_s_per_worker=384 / step_time_s, tflops_per_s=0.5, mfu=None,
            world_size=world_size, micro_batch=6, accumulation=1, ranks=summarise(ranks),
        )  # fmt: skip

    return make
