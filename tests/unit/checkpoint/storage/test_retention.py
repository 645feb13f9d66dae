"""Which checkpoints may go, as a decision over values."""

import pytest

from orchestrator.checkpoint.format.checkpoint_manifest import Manifest
from orchestrator.checkpoint.storage.retention import Candidate, Rule, best, which_to_remove

pytestmark = pytest.mark.unit


def candidates(*steps: int, **losses: float) -> list[Candidate]:
    return [Candidate(step, True, losses.get(f"s{step}")) for step in steps]


def test_the_newest_stay() -> None:
    found = candidates(10, 40, 20, 30)
    assert which_to_remove(found, Rule(2), 40) == [20, 10]
    assert which_to_remove(found, Rule(9), 40) == []
    assert which_to_remove([], Rule(1), None) == []
    with pytest.raises(ValueError, match="at least one"):
        Rule(0)


def test_parts_of_the_rule_add_up() -> None:
    found = candidates(10, 20, 30, 40, 50, 60, s10=3.0, s20=1.0, s30=2.0, s40=4.0, s50=1.5, s60=9.0)
    assert which_to_remove(found, Rule(1, keep_every=30), 60) == [50, 40, 20, 10]
    assert which_to_remove(found, Rule(1, keep_best=2), 60) == [40, 30, 10]
    assert which_to_remove(found, Rule(1, keep_every=30, keep_best=1), 60) == [50, 40, 10]


def test_the_newest_valid_one_stays_whatever_the_rule_says() -> None:
    assert which_to_remove(candidates(1, 2, 3, 4), Rule(1), 2) == [3, 1]


def test_what_is_not_finished_goes_when_something_newer_is() -> None:
    found = [*candidates(10, 30), Candidate(20, False), Candidate(40, False)]
    assert which_to_remove(found, Rule(5), 30) == [20]
    assert which_to_remove([Candidate(40, False)], Rule(1), None) == []


def test_validation_loss_goes_before_training_loss_and_is_never_compared_with_it() -> None:
    found = [
        Candidate(1, True, loss=0.1),
        Candidate(2, True, loss=5.0, validation_loss=4.0),
        Candidate(3, True, loss=4.0, validation_loss=5.0),
    ]
    assert best(found, 1) == [2]
    assert best(found, 9) == [2, 3]
    assert best(candidates(1, 2, 3, s1=2.0, s3=2.0), 1) == [3], "of equal ones the newer"
    assert best(candidates(1, 2), 2) == [], "checkpoints without a loss are not ranked"


def test_a_loss_that_is_no_number_is_no_best() -> None:
    extra = {"loss": float("nan"), "validation_loss": None}
    saved = Manifest(3, 36, 1, 1, "Adam", {}, {}, False, (), (), extra=extra)
    assert Candidate.of(3, saved) == Candidate(3, True, None, None)
    assert Candidate.of(3, None) == Candidate(3, False)
