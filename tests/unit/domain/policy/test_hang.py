"""When a gang counts as hung, and who is named."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.checkpoint.storage.storage import StorageLimits
from orchestrator.domain.policy.hang import (
    ALL_STORAGE_S,
    CHECKPOINT_FLOOR_S,
    EXPORT_S,
    FIRST_CHECKPOINT_S,
    FIRST_S,
    OUTSIDE_S,
    SILENT_S,
    STEP_FLOOR_S,
    STEP_PHASES,
    STOPPED_S,
    STORAGE_S,
    SUSPICION,
    CollectiveCounts,
    Pace,
    Phase,
    Pulse,
    State,
    bound_s,
    judge_pulses,
    name_culprits,
    step_bound_s,
)
from orchestrator.gang.agent.worker_actor import FILE_CALL_S

pytestmark = pytest.mark.unit

PACE = Pace((0.1, 0.2, 0.1), (), first_over=True)
WAITING = Pulse(0, 7, 5, Phase.EXCHANGE, still_s=0.1, quiet_s=0.2)


def gang(*changes: dict[str, object]) -> list[Pulse]:
    """Three ranks in the same collective, with changes by rank."""
    pulses = [replace(WAITING, rank=rank) for rank in range(3)]
    return [replace(pulse, **change) for pulse, change in zip(pulses, [*changes, {}, {}, {}], strict=False)]  # type: ignore[arg-type]


def still(seconds: float, pulses: list[Pulse]) -> list[Pulse]:
    return [replace(pulse, still_s=seconds) for pulse in pulses]


seconds = st.floats(0.0, 1e5)
pulse = st.builds(
    Pulse,
    rank=st.integers(0, 7),
    step=st.integers(0, 50),
    beat=st.integers(0, 20),
    phase=st.sampled_from(Phase),
    still_s=seconds,
    quiet_s=seconds,
    looked=st.booleans(),
    stopped_s=seconds,
    waits=st.sampled_from([None, True, False]),
    blocked=st.booleans(),
)
gangs = st.lists(pulse, min_size=1, max_size=8, unique_by=lambda item: item.rank)
paces = st.builds(
    Pace,
    st.lists(st.floats(0.0, 1e4), max_size=50).map(tuple),
    st.lists(st.floats(0.0, 1e4), max_size=5).map(tuple),
    st.booleans(),
)
asked = st.none() | st.floats(0.1, 1e5)


@given(paces, asked)
def test_a_bound_is_never_below_what_steps_take(pace: Pace, asked_s: float | None) -> None:
    step_s = step_bound_s(pace, asked_s)
    if asked_s is not None:
        assert step_s == asked_s
    else:
        assert step_s >= max(STEP_FLOOR_S, 2.0 * max(pace.steps_s, default=0.0))
    for phase in Phase:
        assert bound_s(phase, pace, asked_s) >= step_s
        if phase not in STEP_PHASES and phase is not Phase.CHECKPOINT:
            assert bound_s(phase, pace, asked_s) >= OUTSIDE_S


def test_the_bound_follows_the_steps() -> None:
    assert step_bound_s(Pace((0.1,) * 50), None) == STEP_FLOOR_S
    assert step_bound_s(Pace((30.0,) * 50), None) == 150.0
    assert step_bound_s(Pace((30.0,) * 49 + (100.0,)), None) == 200.0


def test_what_is_no_step_has_more_time() -> None:
    assert bound_s(Phase.FORWARD, Pace(), None) == FIRST_S
    assert bound_s(Phase.FORWARD, Pace((1.0,)), None) == 60.0  # the first step of a later gang
    assert bound_s(Phase.FORWARD, PACE, None) == STEP_FLOOR_S
    assert bound_s(Phase.CHECKPOINT, PACE, None) == FIRST_CHECKPOINT_S
    assert bound_s(Phase.CHECKPOINT, replace(PACE, checkpoints_s=(1.0,)), None) == CHECKPOINT_FLOOR_S
    assert bound_s(Phase.CHECKPOINT, replace(PACE, checkpoints_s=(60.0, 1.0)), None) == 600.0
    assert bound_s(Phase.EXPORT, PACE, 5.0) == EXPORT_S


@given(gangs, st.floats(0.0, 9.9), paces, st.integers(0, 7))
def test_whoever_still_makes_a_beat_saves_all(pulses: list[Pulse], moved_s: float, pace: Pace, which: int) -> None:
    index = which % len(pulses)
    pulses[index] = replace(pulses[index], still_s=min(moved_s, STOPPED_S - 0.1))
    assert judge_pulses(pulses, 1e6, pace, None).state is not State.HUNG


heard = st.floats(0.0, SILENT_S, exclude_max=True)


@given(st.sampled_from(Phase), st.lists(st.floats(0.0, 1e5), min_size=1, max_size=8), heard, paces, asked)
def test_progress_in_any_phase_is_no_hang_and_none_is_one_in_time(
    phase: Phase, still: list[float], quiet_s: float, pace: Pace, asked_s: float | None
) -> None:
    """However long the phase has lasted: only the time since anybody's last progress decides."""
    pulses = [Pulse(rank, 7, 3, phase, still_s, quiet_s) for rank, still_s in enumerate(still)]
    finding = judge_pulses(pulses, 1e6, pace, asked_s)
    bound = bound_s(phase, pace, asked_s)
    assert (finding.state is State.HUNG) is (min(still) >= bound)
    assert (finding.state is State.FINE) is (min(still) < SUSPICION * bound)


@given(gangs, paces, asked)
def test_without_progress_every_gang_that_is_heard_is_hung_in_the_end(
    pulses: list[Pulse], pace: Pace, asked_s: float | None
) -> None:
    limit_s = max(ALL_STORAGE_S, *(bound_s(pulse.phase, pace, asked_s) for pulse in pulses))
    silent = [replace(pulse, still_s=limit_s, quiet_s=0.0) for pulse in pulses]
    assert judge_pulses(silent, limit_s, pace, asked_s).state is State.HUNG


def test_storage_reports_its_own_failure_before_a_checkpoint_is_a_hang() -> None:
    limits = StorageLimits()
    assert limits.connect_s + limits.request_s + limits.retry_s < CHECKPOINT_FLOOR_S
    assert FILE_CALL_S < CHECKPOINT_FLOOR_S


def test_storage_that_does_not_answer_is_no_hang_of_a_worker() -> None:
    in_data = {"phase": Phase.DATA, "beat": 0}
    blocked = {**in_data, "blocked": True, "waits": False}
    assert judge_pulses(still(12.0, gang(in_data)), 12.0, PACE, None).culprits == (0,)
    finding = judge_pulses(still(12.0, gang(blocked)), 12.0, PACE, None)
    assert (finding.state, finding.excused) == (State.FINE, (0,))
    assert judge_pulses(still(9.0, gang(blocked)), 9.0, PACE, None).excused == ()
    finding = judge_pulses(still(STORAGE_S, gang(blocked)), STORAGE_S, PACE, None)
    assert (finding.state, finding.culprits) == (State.HUNG, (0,))
    assert finding.reason.startswith("its storage does not answer in data of step 7")


def test_storage_that_all_share_is_waited_for_longer() -> None:
    pulses = gang(*[{"phase": Phase.DATA, "blocked": True}] * 3)
    assert judge_pulses(still(STORAGE_S, pulses), STORAGE_S, PACE, None).excused == (0, 1, 2)
    assert judge_pulses(still(ALL_STORAGE_S, pulses), ALL_STORAGE_S, PACE, None).state is State.HUNG


def test_blocked_ranks_that_are_waited_for_by_nobody_are_not_named() -> None:
    """Rank 0 reads ahead and is in a collective; rank 1 is the one that does not come."""
    pulses = gang(
        {"blocked": True, "waits": True}, {"beat": 3, "phase": Phase.FORWARD, "waits": False}, {"waits": True}
    )
    assert name_culprits(pulses)[0] == (1,)


@given(gangs, paces, asked)
def test_a_step_that_was_just_reported_saves_all(pulses: list[Pulse], pace: Pace, asked_s: float | None) -> None:
    assert judge_pulses(pulses, 0.0, pace, asked_s).state is State.FINE


@given(gangs, paces, asked)
def test_silence_alone_proves_nothing(pulses: list[Pulse], pace: Pace, asked_s: float | None) -> None:
    silent = [replace(pulse, quiet_s=SILENT_S + pulse.quiet_s, looked=False) for pulse in pulses]
    assert judge_pulses(silent, 1e6, pace, asked_s).state is State.FINE


@given(gangs, seconds, paces, asked)
def test_culprits_are_members(pulses: list[Pulse], since_s: float, pace: Pace, asked_s: float | None) -> None:
    finding = judge_pulses(pulses, since_s, pace, asked_s)
    assert set(finding.culprits) <= {pulse.rank for pulse in pulses}
    if finding.state is State.HUNG:
        assert finding.reason
        assert finding.still_s >= min(STOPPED_S if asked_s is None else asked_s, step_bound_s(pace, asked_s))
    else:
        assert not finding.culprits


def test_stacks_are_taken_before_anything_is_done() -> None:
    pulses = gang({"beat": 3, "phase": Phase.BACKWARD})
    assert judge_pulses(still(4.0, pulses), 4.0, PACE, None).state is State.FINE
    assert judge_pulses(still(5.0, pulses), 5.0, PACE, None).state is State.SUSPICIOUS
    assert judge_pulses(still(9.9, pulses), 9.9, PACE, None).state is State.SUSPICIOUS
    finding = judge_pulses(still(10.0, pulses), 10.0, PACE, None)
    assert (finding.state, finding.culprits) == (State.HUNG, (0,))
    assert finding.reason == "it is in backward of step 7, the others are in exchange of step 7"


def test_the_slowest_phase_sets_the_bound() -> None:
    pulses = gang({"phase": Phase.CHECKPOINT})
    assert judge_pulses(still(100.0, pulses), 100.0, PACE, None).state is State.FINE


def test_a_stopped_process_is_known_sooner() -> None:
    stopped = {"quiet_s": 5.0, "looked": True, "stopped_s": 1.5}
    pulses = still(5.0, gang({}, stopped))
    finding = judge_pulses(pulses, 5.0, PACE, None)
    assert (finding.state, finding.culprits) == (State.HUNG, (1,))
    assert judge_pulses(pulses, 5.0, PACE, 60.0).state is State.FINE  # the spec wants more patience
    assert judge_pulses(pulses, 0.5, PACE, None).state is State.FINE  # steps are made all the same
    once = still(5.0, gang({}, {**stopped, "stopped_s": 0.0}))
    assert judge_pulses(once, 5.0, PACE, None).state is not State.HUNG  # seen stopped a single time: a burst
    moments = still(3.4, gang({}, {"quiet_s": 3.4, "looked": True, "stopped_s": 1.5}))
    assert judge_pulses(moments, 3.4, PACE, None).state is State.FINE


def test_whoever_does_not_answer_is_waited_for() -> None:
    pulses = still(10.0, gang({}, {}, {"quiet_s": 11.0}))
    finding = judge_pulses(pulses, 10.0, PACE, None)
    assert finding.culprits == (2,)
    assert "does not answer" in finding.reason


def test_at_the_same_place_stacks_tell() -> None:
    inside = {"beat": 2, "phase": Phase.FORWARD, "waits": True}
    culprits, reason = name_culprits(gang(inside, {**inside, "waits": False}, inside))
    assert culprits == (1,)
    assert reason == "it is in forward of step 7 and in no collective, while the others wait in forward of step 7"


def test_the_one_that_is_ahead_of_a_majority_is_odd() -> None:
    behind = {"beat": 2, "phase": Phase.FORWARD, "waits": True}
    culprits, _ = name_culprits(gang(behind, {"waits": True}, behind))
    assert culprits == (1,)


def test_nobody_is_named_where_all_are_alike() -> None:
    assert name_culprits(gang()) == ((), "all workers are in exchange of step 7")
    assert name_culprits(gang({"waits": False}, {"waits": False}, {"waits": False}))[0] == ()
    assert name_culprits(gang(*[{"waits": True}] * 3))[0] == ()


def counted(*numbers: tuple[int, int]) -> list[Pulse]:
    """A gang on GPUs, with the collectives that each rank has called and started."""
    return gang(*({"waits": False, "counts": CollectiveCounts(called, began, 0)} for called, began in numbers))


def test_on_gpus_the_order_of_collectives_tells_who_is_late() -> None:
    assert name_culprits(counted((9, 9), (8, 8), (9, 9))) == (
        (1,), "its process has not called collective 9, in which the others wait",
    )  # fmt: skip
    assert name_culprits(counted((9, 9), (9, 9), (9, 8))) == (
        (2,), "its GPU has not started collective 9, in which the others wait",
    )  # fmt: skip
    assert name_culprits(counted((9, 8), (9, 8), (9, 9)))[0] == (0, 1)
    assert name_culprits(counted((9, 9), (9, 9), (9, 9)))[0] == ()


def test_collectives_that_one_rank_does_not_tell_are_not_compared() -> None:
    pulses = counted((9, 9), (8, 8), (9, 9))
    assert "collective 9" not in name_culprits([pulses[0], pulses[1], replace(pulses[2], counts=None)])[1]
