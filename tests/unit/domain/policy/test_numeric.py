import json
import math
import random
from dataclasses import replace

import pytest

from orchestrator.domain.policy.numeric import (
    WINDOW_STEPS,
    FaultKind,
    NumericFault,
    Skip,
    SpikeBound,
    StepNumbers,
    TrainingDivergedError,
    choose_state,
    find_fault,
    refuse,
    skip_range,
)

pytestmark = pytest.mark.unit

NAN = float("nan")
BOUND = SpikeBound(deviations=6.0, window=32)
FINE = StepNumbers(7, 72, 12, (30.0, 29.0), (10, 10), 2.95, 1.5)
FAULT = NumericFault(FaultKind.LOSS, 7, 72, 12, NAN, 1)
SPIKE = NumericFault(FaultKind.SPIKE, 7, 72, 12, 9.5, 0)


def found(overflow_is_normal: bool = False, losses: tuple[float, ...] = (), **changes: object) -> NumericFault | None:
    return find_fault(replace(FINE, **changes), losses, BOUND, overflow_is_normal)  # type: ignore[arg-type]


def went_back(fault: NumericFault, from_step: int) -> Skip:
    return Skip(fault.first_position, fault.count, from_step, 1000.0, fault)


def test_a_sound_step_is_no_fault() -> None:
    assert found() is None


@pytest.mark.parametrize("value", [NAN, float("inf"), -float("inf")])
def test_the_first_rank_whose_loss_is_no_number_is_named(value: float) -> None:
    fault = found(rank_losses=(30.0, value), loss=NAN, grad_norm=NAN)
    assert fault is not None
    assert (fault.kind, fault.step, fault.first_position, fault.count, fault.rank) == (FaultKind.LOSS, 7, 72, 12, 1)
    assert str(fault.value) == str(value)


def test_a_gradient_that_is_no_number_belongs_to_nobody() -> None:
    fault = found(grad_norm=float("inf"))
    assert fault == NumericFault(FaultKind.GRADIENT, 7, 72, 12, float("inf"), None)
    assert fault is not None
    assert fault.text == "the gradient norm is inf at step 7 (samples [72, 84) of the order)"


def test_under_fp16_a_gradient_overflow_is_normal_but_a_loss_is_not() -> None:
    assert found(True, grad_norm=NAN) is None
    assert found(True, rank_losses=(NAN, 1.0), grad_norm=NAN) is not None


def noisy(count: int, middle: float = 3.0, spread: float = 0.05) -> tuple[float, ...]:
    draw = random.Random(1)
    return tuple(middle + draw.gauss(0.0, spread) for _ in range(count))


def test_a_spike_is_judged_by_a_full_window_only() -> None:
    spiked = {"loss": 9.5, "rank_losses": (30.0, 160.0)}
    assert found(losses=noisy(31), **spiked) is None  # type: ignore[arg-type]
    fault = found(losses=noisy(32), **spiked)  # type: ignore[arg-type]
    assert fault == NumericFault(FaultKind.SPIKE, 7, 72, 12, 9.5, 1)
    assert find_fault(replace(FINE, loss=9.5), noisy(32), None, False) is None


def test_ordinary_noise_is_no_spike() -> None:
    losses = noisy(5000)
    for index in range(32, len(losses)):
        limit = BOUND.limit(losses[:index])
        assert limit is not None
        assert losses[index] < limit


def test_earlier_spikes_do_not_raise_the_bound() -> None:
    """With a mean and a standard deviation two spikes of 50 would hide a third."""
    clean, dirty = BOUND.limit(noisy(32)), BOUND.limit((*noisy(30), 50.0, 50.0))
    assert clean is not None
    assert dirty is not None
    assert dirty == pytest.approx(clean, rel=0.1)


def test_losses_that_do_not_differ_leave_room() -> None:
    assert BOUND.limit((2.0,) * 32) == pytest.approx(2.0 + 6 * 0.02)


def test_faults_and_skips_survive_json() -> None:
    for fault in (FAULT, SPIKE, replace(FAULT, kind=FaultKind.GRADIENT, value=-float("inf"), rank=None)):
        back = NumericFault.from_json(json.loads(json.dumps(fault.to_json(), allow_nan=False)))
        assert replace(back, value=0.0) == replace(fault, value=0.0)
        assert str(back.value) == str(fault.value)
        skip = went_back(fault, 5)
        again = Skip.from_json(json.loads(json.dumps(skip.to_json(), allow_nan=False)))
        assert (again.first, again.count, again.from_step, again.time_s) == (72, 12, 5, 1000.0)
    given = Skip(0, 12, 0, 1.0, None)
    assert Skip.from_json(given.to_json()) == given


def test_the_error_carries_the_fault() -> None:
    error = TrainingDivergedError(FAULT)
    assert error.message == "the loss is nan at step 7 on rank 1 (samples [72, 84) of the order)"
    assert error.hint
    assert math.isnan(NumericFault.from_json(error.details["numeric_fault"]).value)


def test_the_newest_state_before_the_fault_is_gone_back_to() -> None:
    assert choose_state(FAULT, [2, 4, 6], []) == 6
    assert choose_state(FAULT, [2, 4, 6, 7, 8], []) == 6
    assert choose_state(FAULT, [], []) == 0
    assert choose_state(FAULT, [7], []) is None, "not the beginning, where there was progress"


def test_after_a_spike_the_weights_it_shows_are_not_trusted_where_there_are_others() -> None:
    assert choose_state(SPIKE, [2, 4, 6], []) == 4
    assert choose_state(SPIKE, [6], []) == 6


def test_a_state_that_leads_to_the_fault_again_is_not_gone_back_to_twice() -> None:
    again = replace(FAULT, first_position=84)
    assert choose_state(again, [2, 4, 6], [went_back(FAULT, 6)]) == 4
    assert choose_state(again, [6], [went_back(FAULT, 6)]) is None
    later = replace(FAULT, step=9, first_position=108)
    assert choose_state(later, [6, 8], [went_back(FAULT, 6)]) == 8


def test_too_many_rollbacks_within_so_many_steps_are_refused() -> None:
    behind = [went_back(replace(FAULT, step=step), step - 1) for step in (10, 20)]
    now = replace(FAULT, step=30)
    assert refuse(now, behind, 3) is None
    refusal = refuse(now, behind, 2)
    assert refusal is not None
    assert "rolled back 2 times within 1000 steps (recovery.max_rollbacks is 2)" in refusal.reason
    assert "train.lr" in refusal.hint
    assert refuse(replace(FAULT, step=10 + WINDOW_STEPS), behind, 2) is None
    left_out_from_the_start = Skip(0, 12, 0, 1.0, None)
    assert refuse(now, [left_out_from_the_start] * 5, 1) is None


def test_the_same_step_again_from_the_beginning_is_refused() -> None:
    again = replace(FAULT, first_position=84)
    refusal = refuse(again, [went_back(FAULT, 0)], 9)
    assert refusal is not None
    assert "the data is not the cause" in refusal.reason
    assert refuse(again, [went_back(FAULT, 5)], 9) is None
    assert refuse(replace(again, step=8), [went_back(FAULT, 0)], 9) is None


def test_what_is_left_out() -> None:
    assert skip_range(FAULT, 60, 0) == (72, 12)
    assert skip_range(FAULT, 60, 1) == (60, 36)
    assert skip_range(FAULT, 60, 3) == (60, 60), "not what the state gone back to has seen"
    assert skip_range(SPIKE, 0, 0) == (60, 24)
    assert skip_range(SPIKE, 72, 0) == (72, 12)
