"""The table of a run's states."""

from pathlib import Path

import pytest

from orchestrator.domain.events import RunState
from orchestrator.domain.run_states import FINAL_STATES, TRANSITIONS, is_allowed
from orchestrator.run.state_reference import with_table

pytestmark = pytest.mark.unit

DOCUMENT = Path(__file__).parents[3] / "docs" / "architecture.md"


def test_the_document_draws_the_table() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert with_table(text) == text, "run `make docs`"


def test_each_transition_is_there_once_and_every_state_is_reached_and_left() -> None:
    pairs = [(each.source, each.target) for each in TRANSITIONS]
    assert len(pairs) == len(set(pairs))
    assert {target for _, target in pairs} == set(RunState)
    assert {source for source, _ in pairs} == set(RunState) - {RunState.SUCCEEDED}


def test_a_final_state_is_left_only_by_a_resume() -> None:
    for state in FINAL_STATES:
        allowed = [target for target in RunState if is_allowed(state, target)]
        assert allowed == ([] if state is RunState.SUCCEEDED else [RunState.PREPARING])
