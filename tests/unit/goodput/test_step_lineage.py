"""Sums along the steps that count."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.goodput.step_lineage import AMOUNTS, LINEAGE_CLASSES, MAX_POINTS, StepLineage
from orchestrator.goodput.time_class import TimeClass
from orchestrator.json_values import JsonShapeError

pytestmark = pytest.mark.unit
PRODUCTIVE = LINEAGE_CLASSES.index(TimeClass.PRODUCTIVE)


def amounts(seconds: float) -> list[float]:
    return [seconds if place == PRODUCTIVE else 0.0 for place in range(AMOUNTS)]


def productive(lineage: StepLineage) -> float:
    return lineage.counted[PRODUCTIVE]


def test_a_repeated_step_supersedes_those_after_it_by_the_crews_that_made_them() -> None:
    lineage = StepLineage()
    for step, crew in ((1, 7), (2, 7), (3, 8), (4, 8)):
        assert lineage.add(step, amounts(step), crew) == []
    lineage.go_on_from(1)
    assert [(each.crew, each.amounts[PRODUCTIVE]) for each in lineage.undone()] == [(7, 2.0), (8, 7.0)]
    assert productive(lineage) == 1.0
    lineage.go_on_from(3)  # a newer state was found
    assert [(each.crew, each.amounts[PRODUCTIVE]) for each in lineage.undone()] == [(8, 4.0)]
    superseded = lineage.add(2, amounts(5.0), 9)
    assert [(each.crew, each.amounts[PRODUCTIVE]) for each in superseded] == [(7, 2.0), (8, 7.0)]
    assert (productive(lineage), lineage.last, lineage.position) == (6.0, 2, 2)
    assert lineage.crews == {0, 7, 9}


def test_it_is_continued_from_its_json() -> None:
    lineage = StepLineage()
    for step in range(1, 600):
        lineage.add(step, amounts(0.5), step // 100)
    lineage.go_on_from(598)
    again = StepLineage.from_json(lineage.to_json())
    assert again.to_json() == lineage.to_json()
    assert again.undone() == lineage.undone()


@pytest.mark.parametrize(
    "wrong", [{"steps": []}, {"steps": [0, 1], "sums": [[0.0] * AMOUNTS]}, {"sums": [[0.0]]}, {"position": None}]
)
def test_what_is_no_lineage_is_refused(wrong: dict) -> None:
    with pytest.raises(JsonShapeError):
        StepLineage.from_json({**StepLineage().to_json(), **wrong})


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(1, 400), st.integers(0, 4000)), min_size=1, max_size=6), st.randoms())
def test_a_long_lineage_is_short_and_adds_up(stretches: list, draw: object) -> None:
    """Between the steps that are kept it is interpolated: wrong by no more than the steps of one gap."""
    lineage, made, total_s, superseded_s = StepLineage(), list[float](), 0.0, 0.0
    for count, back_to in stretches:
        del made[min(back_to, len(made)) :]
        for _ in range(count):
            seconds = draw.uniform(0.5, 1.5)  # type: ignore[attr-defined]
            made.append(seconds)
            total_s += seconds
            superseded_s += sum(each.amounts[PRODUCTIVE] for each in lineage.add(len(made), amounts(seconds), 1))
        value = lineage.to_json()
        assert len(value["steps"]) <= MAX_POINTS + 1
        assert productive(lineage) + superseded_s == pytest.approx(total_s)
        newest = range(max(0, len(made) - MAX_POINTS // 4), len(made), 7)
        for step in newest if len(stretches) == 1 else ():
            lineage.go_on_from(step)
            assert sum(each.amounts[PRODUCTIVE] for each in lineage.undone()) == pytest.approx(sum(made[step:]))
        for first, last in pairwise(value["sums"]):
            assert first[PRODUCTIVE] <= last[PRODUCTIVE]
