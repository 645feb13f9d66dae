"""Each rule names its bottleneck, with the right share, and is silent below its threshold."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from orchestrator.domain.events import (
    CheckpointSaved,
    DataReady,
    EvalFinished,
    MicroStepMeasured,
    RecoveryFinished,
    RecoveryStarted,
    StateChanged,
    WorkerStarted,
)
from orchestrator.goodput.time_class import TimeClass
from orchestrator.run_facts.run_model import RunFacts
from orchestrator.run_facts.why import run_rules, step_rules
from orchestrator.run_facts.why.bottleneck import Bottleneck
from orchestrator.run_facts.why.diagnosis import RULES, diagnose
from tests.unit.run_facts.made import Rank, event, facts, ledger, step

pytestmark = pytest.mark.unit


def hundred(*ranks: Rank, **fields: object) -> RunFacts:
    """A hundred equal steps in a hundred seconds."""
    return facts(step(number, *ranks, **fields) for number in range(1, 101))


def only(run: RunFacts) -> Bottleneck:
    """The one that was found."""
    found = diagnose(run).found
    assert len(found) == 1, [each.name for each in found]
    return found[0]


def test_nothing_stands_out_on_a_healthy_run() -> None:
    measured = event(MicroStepMeasured, 5.0, step=3, micro_batch=8, forward_s=0.3, fixed_s=0.01)
    reports = [step(number, Rank(data_s=0.01, collective_s=0.05), Rank(collective_s=0.05)) for number in range(1, 101)]
    diagnosis = diagnose(facts(reports, [measured]))
    assert (diagnosis.found, diagnosis.summary, diagnosis.not_judged) == ((), "nothing stands out", ())


def test_a_run_with_few_steps_is_not_judged() -> None:
    assert diagnose(facts([step(1)])).summary == "too few steps to judge: 1"
    assert diagnose(facts([])).summary == "too few steps to judge: 0"


def test_waiting_for_data() -> None:
    found = only(hundred(Rank(data_s=0.3, forward_s=0.2, backward_s=0.4)))
    assert (found.name, found.share) == ("data_wait", pytest.approx(0.3))
    assert "0.30 s" in found.evidence[0]
    assert step_rules.data_wait(hundred(Rank(data_s=0.04))) is None


def test_data_that_one_rank_waits_for_is_no_slow_rank() -> None:
    ranks = [Rank(forward_s=0.2, backward_s=0.3), Rank(data_s=0.4, forward_s=0.2, backward_s=0.3)]
    node = event(WorkerStarted, 1.0, rank=1, node="10.0.0.7")
    found = only(facts((step(number, *ranks) for number in range(1, 101)), [node]))
    assert (found.name, found.share) == ("data_wait", pytest.approx(0.4))
    assert "0.20 s in the mean over the ranks" in found.evidence[0]
    assert found.evidence[-1] == "rank 1 on node 10.0.0.7 waits longest in most steps"
    assert "the disk of node 10.0.0.7" in found.advice[0]


def test_a_slow_rank_and_its_phase() -> None:
    ranks = [Rank(forward_s=0.2, backward_s=0.3)] * 4
    ranks[2] = Rank(forward_s=0.6, backward_s=0.35)
    run = facts(
        (step(number, *ranks) for number in range(1, 101)),
        [event(WorkerStarted, 1.0, rank=2, node="10.0.0.7")],
    )
    found = only(run)
    assert (found.name, found.share) == ("slow_rank", pytest.approx(0.45))
    assert "rank 2 is slow, mostly in forward" in found.headline
    assert "10.0.0.7" in found.evidence[0]
    assert "100 of 100" in found.evidence[0]


def test_ranks_that_are_slow_in_turns_are_no_slow_rank() -> None:
    fast, slow = Rank(backward_s=0.3), Rank(backward_s=0.5)
    reports = [step(number, *((slow, fast) if number % 2 else (fast, slow))) for number in range(1, 101)]
    assert step_rules.slow_rank(facts(reports)) is None


def test_a_rank_with_more_samples_is_not_slow() -> None:
    more, less = Rank(forward_s=0.4, backward_s=0.8, samples=16), Rank(forward_s=0.2, backward_s=0.4, samples=8)
    assert step_rules.slow_rank(hundred(more, less)) is None


def test_a_small_difference_between_ranks_is_noise() -> None:
    assert step_rules.slow_rank(hundred(Rank(backward_s=0.55), Rank(backward_s=0.6))) is None


def test_communication_is_what_the_last_rank_spends_in_collectives() -> None:
    both = Rank(backward_s=0.8, collective_s=0.4)
    found = only(hundred(both, both))
    assert (found.name, found.share) == ("communication", pytest.approx(0.4))
    waiting, slow = Rank(backward_s=0.8, collective_s=0.6), Rank(backward_s=0.8, collective_s=0.1)
    assert step_rules.communication(hundred(waiting, slow)) is None  # it waits for the other rank


@pytest.mark.parametrize(("accumulation", "fixed_s", "share"), [(4, 0.08, 0.54), (4, 0.01, None), (1, 0.08, 0.72)])
def test_a_small_micro_batch(accumulation: int, fixed_s: float, share: float | None) -> None:
    """Of 0.9 s of forward and backward, fixed_s / 0.1 do not depend on the samples; three of four micro steps go."""
    measured = event(MicroStepMeasured, 5.0, step=3, micro_batch=1, forward_s=0.1, fixed_s=fixed_s)
    reports = [step(number, accumulation=accumulation, micro_batch=1) for number in range(1, 101)]
    found = step_rules.micro_batch(facts(reports, [measured]))
    if share is None:
        assert found is None
    else:
        assert found is not None
        assert found.share == pytest.approx(share)
        assert ("train.micro_batch" in found.advice[0]) == (accumulation > 1)


def test_a_small_micro_batch_cannot_be_judged_if_it_was_not_measured() -> None:
    assert step_rules.micro_batch(hundred()) is None
    assert any("micro batch" in reason for reason in diagnose(hundred()).not_judged)


def test_padding_is_its_share_of_the_computation() -> None:
    reports = [step(number, positions=4000) for number in range(1, 101)]  # 1000 tokens
    found = only(facts(reports, data={"packing": False}))
    assert (found.name, found.share) == ("padding", pytest.approx(0.75 * 0.9))
    assert "500 tokens" not in found.evidence[1]
    assert "62 tokens" in found.evidence[1]
    unknown = facts([replace(report, positions=None) for report in reports])
    assert step_rules.padding(unknown) is None
    assert any("padding" in reason for reason in diagnose(unknown).not_judged)


def test_snapshot_stalls() -> None:
    found = only(hundred(Rank(snapshot_s=0.1), Rank(snapshot_s=0.1)))
    assert (found.name, found.share) == ("snapshots", pytest.approx(0.1))


def test_evaluations_that_are_too_frequent() -> None:
    evaluations = [event(EvalFinished, 10.0 * n, step=10 * n, loss=5.0, seconds=3.0) for n in range(1, 10)]
    found = only(facts([step(number) for number in range(1, 61)], evaluations))
    assert (found.name, found.share) == ("evaluation", pytest.approx(0.27))
    assert "train.eval_interval_steps: 140" in found.advice[0]
    assert run_rules.evaluation(facts([step(1)], evaluations[:2])) is None, "the first and the last say nothing"


def test_checkpoints_that_are_too_frequent() -> None:
    saved = [event(CheckpointSaved, 10.0 * n, step=10 * n, seconds=1.0) for n in range(1, 10)]
    found = only(facts([step(number) for number in range(1, 61)], saved))
    assert (found.name, found.share) == ("checkpoints", pytest.approx(0.09))
    assert "checkpoint.interval_steps: 45" in found.advice[1]


def test_recoveries_with_the_steps_they_repeat() -> None:
    more = []
    for number, at_s in enumerate((20.0, 50.0, 80.0), 1):
        fields = {"incident": number, "rank": 1, "cause": "its process was killed", "step": 10, "from_step": 8}
        more.append(event(RecoveryStarted, at_s, detected_s=1_700_000_000.0 + at_s, **fields))
        over = {"incident": number, "seconds": 4.0, "steps_recomputed": 2}
        more.append(event(RecoveryFinished, at_s + 4.0, step=11, world_size=2, **over))
    found = only(facts([step(number) for number in range(1, 61)], more))
    assert (found.name, found.share) == ("recoveries", pytest.approx(0.18))
    assert "3 recoveries" in found.evidence[0]
    assert "rank 1 failed 3 times" in found.evidence[2]


def test_a_recovery_that_is_not_over_counts_so_far() -> None:
    lost = event(RecoveryStarted, 60.0, incident=1, rank=1, cause="gone", detected_s=1_700_000_060.0)
    found = run_rules.recoveries(facts([step(1)], [lost], ended_s=None, now_s=100.0))
    assert found is not None
    assert found.seconds == pytest.approx(40.0)


def test_waiting_for_workers() -> None:
    more = [event(StateChanged, 20.0, state="waiting"), event(StateChanged, 50.0, state="recovering")]
    found = only(facts([step(number) for number in range(1, 61)], more))
    assert (found.name, found.share) == ("waiting", pytest.approx(0.3))
    still = facts([step(1)], [event(StateChanged, 90.0, state="waiting")], ended_s=None, now_s=100.0)
    assert run_rules.waiting(still) is not None


def test_a_long_start() -> None:
    recorded = ledger(4600.0, startup=3040.0, productive=6160.0)
    ready = event(DataReady, 1500.0, seconds=1490.0)
    found = only(facts([step(number) for number in range(1, 61)], [ready], ended_s=4600.0, ledger=recorded))
    assert (found.name, found.share) == ("start_up", pytest.approx(3040 / 9200))
    assert "24:50" in found.evidence[1]


def test_shares_of_worker_time_are_those_of_the_ledger() -> None:
    lost = {"recovery_rebuild": 60.0, "recomputed": 20.0}
    recorded = ledger(100.0, productive=180.0, waiting=100.0, evaluation=40.0, **lost)
    run = facts([step(number) for number in range(1, 51)], ledger=recorded)
    assert [(each.name, each.share) for each in diagnose(run).found] == [
        ("waiting", pytest.approx(0.25)),
        ("recoveries", pytest.approx(0.2)),
    ]
    assert run.ledger_s(TimeClass.EVALUATION) == pytest.approx(10.0)


def test_the_largest_share_comes_first() -> None:
    reports = [step(n, Rank(data_s=0.2, forward_s=0.1, backward_s=0.3), positions=10_000) for n in range(1, 101)]
    assert [each.name for each in diagnose(facts(reports)).found] == ["padding", "data_wait"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_no_rule_needs_anything_to_be_there(rule: Callable[[RunFacts], Bottleneck | None]) -> None:
    assert rule(facts([], ended_s=0.0, now_s=0.0)) is None
    assert rule(facts([], ended_s=None)) is None
    assert rule(facts([step(1, Rank())])) is None
