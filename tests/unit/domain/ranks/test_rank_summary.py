"""The ranks of a step in bounded space."""

import json
import math
from statistics import median_low

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.ranks.rank_report import CollectiveTimes, PhaseTimes, RankMemory, RankReport
from orchestrator.domain.ranks.rank_summary import (
    OwnWork,
    RankSummary,
    Spread,
    every_rank_due,
    every_rank_interval,
    ranks_from_columns,
    ranks_to_columns,
    summarise,
)
from orchestrator.domain.step_report import StepReport
from orchestrator.json_values import JsonShapeError, parse_object

pytestmark = pytest.mark.unit
LINE_LIMIT_BYTES = 4096


def rank(number: int, forward_s: float = 0.3, waited_s: float = 0.0, rss_bytes: int = 2**30) -> RankReport:
    """A rank of a gang on CPUs that waits for others in its backward pass."""
    phases = PhaseTimes(0.01, forward_s, 0.5 + waited_s, 0.1)
    memory = RankMemory(rss_bytes, rss_bytes + 2**20)
    return RankReport(number, 4, 4096, phases, memory, CollectiveTimes(0.0, waited_s, 0.0))


def on_gpus(world_size: int) -> list[RankReport]:
    """Numbers of as many digits as they have in practice, different on every rank."""
    return [
        RankReport(
            number, 8, 65536 - number,
            PhaseTimes(*(0.123456 + number * 1e-5 + part * 0.1 for part in range(6))),
            RankMemory(*(10**11 + number * 4096 + part for part in range(5))),
            CollectiveTimes(0.01 + number * 1e-5, 0.02, 0.03),
        )
        for number in range(world_size)
    ]  # fmt: skip


@given(st.lists(st.floats(0.0, 9.0), min_size=1, max_size=300))
def test_the_quantiles_are_values_of_ranks(values: list[float]) -> None:
    spread = summarise([rank(number, value) for number, value in enumerate(values)]).spread.forward_s
    ordered = sorted(values)
    assert spread.p50 == pytest.approx(median_low(values), abs=1e-6)
    assert spread.p99 == pytest.approx(ordered[math.ceil(0.99 * len(values)) - 1], abs=1e-6)
    assert spread.max == pytest.approx(ordered[-1], abs=1e-6)
    assert spread.mean(len(values)) == pytest.approx(sum(values) / len(values), abs=1e-6)


def test_the_slowest_are_those_that_did_not_wait() -> None:
    # Synchronous ranks all take as long: the ones that others wait for are the slow ones.
    ranks = [rank(number, waited_s=0.4) for number in range(10)]
    ranks[3], ranks[7] = rank(3, forward_s=0.6), rank(7, forward_s=0.7)
    slowest = summarise(ranks).slowest
    assert [report.rank for report in slowest] == [7, 3, 0, 1]
    assert slowest[0] == ranks[7]


def test_every_rank_comes_at_intervals_that_bound_the_mean() -> None:
    assert [every_rank_interval(world_size) for world_size in (1, 2, 8, 9, 64, 1024)] == [1, 1, 1, 3, 16, 256]
    assert every_rank_due(7, 1024, first=True)
    due = [step for step in range(1, 1001) if every_rank_due(step, 1024, first=False)]
    assert due == [256, 512, 768]


def test_a_step_of_1024_ranks_takes_at_most_4_kb() -> None:
    summary = summarise(on_gpus(1024))
    report = StepReport(
        step=123456, time_s=1795846582.4112635, epoch=0.027491408934707903, loss=5.692399301836567,
        grad_norm=2.4106452465057373, lr=0.000965745789630079, tokens=67108864, target_tokens=67100672, samples=8192,
        first_position=1011351552, data_digest=3212862994157561491, step_time_s=1.09663494499545777,
        tokens_per_s=61234567.1451928909673, tokens_per_s_per_worker=59799.5725964454837,
        tflops_per_s=412345.38808917417775516, mfu=0.4123456789012345, world_size=1024, micro_batch=8, accumulation=1,
        ranks=summary, protected_step=123455,
    )  # fmt: skip
    line_bytes, ranks_bytes = (len(json.dumps(each, separators=(",", ":"))) for each in (
        report.to_json(), report.to_ranks_json()
    ))  # fmt: skip
    assert line_bytes + ranks_bytes / every_rank_interval(1024) <= LINE_LIMIT_BYTES


@pytest.mark.parametrize("ranks", [on_gpus(9), [rank(number) for number in range(3)]])
def test_columns_give_the_ranks_back(ranks: list[RankReport]) -> None:
    rounded = summarise(ranks).every
    columns = parse_object(json.dumps(ranks_to_columns(rounded)))
    assert ranks_from_columns(columns) == rounded
    assert ("allocated_bytes" in columns) is (ranks[0].memory.allocated_bytes is not None)


def test_columns_of_other_lengths_are_refused() -> None:
    columns = ranks_to_columns([rank(0), rank(1)])
    with pytest.raises(JsonShapeError, match="2 ranks"):
        ranks_from_columns({**columns, "tokens": [1, 2, 3]})


def test_what_is_zero_everywhere_takes_no_space() -> None:
    summary = summarise([rank(0), rank(1)])
    written = summary.to_json()
    assert "snapshot_s" not in str(written["spread"])
    read = RankSummary.from_json(parse_object(json.dumps(written)))
    assert read.spread == summary.spread
    assert read.spread.snapshot_s == Spread()
    assert read.spread.reserved_bytes is None


def test_own_work_is_that_of_the_ranks() -> None:
    work = OwnWork.of([rank(0, 0.25, waited_s=0.5), rank(1, 0.75)])
    assert (work.world_size, list(work.samples)) == (2, [4, 4])
    assert work.totals_s == pytest.approx([0.01 + 0.25 + 0.5 + 0.1, 0.01 + 0.75 + 0.5 + 0.1])


def test_a_step_without_ranks_has_an_empty_summary() -> None:
    assert summarise(()) == RankSummary(summarise(()).spread, ())
    assert summarise(()).spread.own_s.mean(0) == 0.0
