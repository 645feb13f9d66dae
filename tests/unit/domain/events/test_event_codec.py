"""Lines of `events.jsonl`: what is written is read back equal, and what is not known is kept."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace

import pytest

from orchestrator.domain.events import (
    EVENT_TYPES,
    AcceptedChange,
    ChangesAccepted,
    CheckpointSaved,
    DevicePlanned,
    EvalFinished,
    Event,
    EventBody,
    FaultKind,
    NumericFaultFound,
    RecoveryStarted,
    RunState,
    ScaleAnswered,
    ScaleState,
    StateChanged,
    UnknownEvent,
    WarningIssued,
)
from orchestrator.domain.events.event_codec import ENVELOPE, VERSION, decode_event, encode_event, fields_of
from orchestrator.domain.events.event_schema import events_schema
from tests.events import body

pytestmark = pytest.mark.unit
FILLED = (
    ChangesAccepted(7, (AcceptedChange("data", "1 file was added"), AcceptedChange("code", "0.1 -> 0.2"))),
    RecoveryStarted(2, 1, "killed", 5.5, 9, 8, "vaults", None, (96, 12)),
    NumericFaultFound(FaultKind.LOSS, 4, 36, 12, "nan", 1, "rollback", 2, 36, 12),
    NumericFaultFound(FaultKind.SPIKE, 4, 36, 12, 81.5, None, "continue"),
    DevicePlanned(4, 100, {"weights": 60, "activations": 40}, 500, 800, "H100"),
    ScaleAnswered("a1", "me@here", 1.5, 4, ScaleState.DONE, "4 workers from step 8 on", 8),
    CheckpointSaved(8, "s3://bucket/step-8", 1234, 0.25, None, 2, 3),
    StateChanged(RunState.WAITING, "too few workers"),
)


def written(event: Event) -> Mapping[str, object]:
    """The line as another process reads it."""
    found = json.loads(json.dumps(encode_event(event)))
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("value", [*map(body, EVENT_TYPES), *FILLED], ids=lambda value: value.kind)
def test_what_is_written_is_read_back_equal(value: EventBody) -> None:
    assert decode_event(written(Event(value, 12.5))) == Event(value, 12.5)  # type: ignore[arg-type]


def test_kinds_and_fields_have_names_of_their_own() -> None:
    kinds = [body_type.KIND for body_type in EVENT_TYPES]
    assert len(set(kinds)) == len(kinds)
    assert not [field for each in EVENT_TYPES for field in fields_of(each) if field.name in ENVELOPE]


def test_every_class_of_an_event_is_listed() -> None:
    assert {each for each in EventBody.__subclasses__() if each.__module__.startswith("orchestrator.")} == {
        *EVENT_TYPES,
        UnknownEvent,
    }


def test_a_line_says_its_version_and_one_without_is_read() -> None:
    line = dict(written(Event(WarningIssued("hot"), 1.0)))
    assert line == {"time_s": 1.0, "kind": "warning", "v": VERSION, "message": "hot"}
    del line["v"]
    assert decode_event(line) == Event(WarningIssued("hot"), 1.0)  # type: ignore[arg-type]


def test_fields_of_a_newer_version_are_kept() -> None:
    line = {"time_s": 1.0, "kind": "warning", "v": 9, "message": "hot", "code": ["E7"]}
    event = decode_event(line)
    assert event == Event(WarningIssued("hot"), 1.0, {"code": ["E7"]})
    assert written(event) == {**line, "v": VERSION}


@pytest.mark.parametrize(
    "line",
    [
        {"kind": "gang.cloned", "copies": 3},
        {"kind": "warning"},
        {"kind": "warning", "message": 7},
        {"kind": "run.state", "state": "hibernating"},
        {"kind": "plan", "world_size": 2, "shares": "8, 8", "micro_batch": 1, "accumulation": 1, "total_steps": 1,
         "parameters": 1},
        {"kind": "run.changes_accepted", "step": 1, "changes": [{"part": "data"}]},
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_an_unknown_event_with_all_its_fields(line: dict[str, object]) -> None:
    fields = {name: value for name, value in line.items() if name != "kind"}
    event = decode_event({**line, "time_s": 2.0})  # type: ignore[dict-item]
    assert event == Event(UnknownEvent(str(line["kind"]), fields), 2.0)  # type: ignore[arg-type]
    assert event is not None
    assert event.body.kind == line["kind"]
    assert written(event) == {**line, "time_s": 2.0, "v": VERSION}


@pytest.mark.parametrize("line", [{}, {"kind": "warning"}, {"kind": 3, "time_s": 1.0}, {"kind": "x", "time_s": True}])
def test_a_line_that_is_no_event_is_none(line: dict[str, object]) -> None:
    assert decode_event(line) is None  # type: ignore[arg-type]


def test_a_number_that_json_has_not_is_null_in_files() -> None:
    event = Event(EvalFinished(3, math.nan, None, 100, 0.5), 1.0)
    found = decode_event({**written(event), "loss": None})  # type: ignore[dict-item]
    assert found is not None
    assert isinstance(found.body, EvalFinished)
    assert math.isnan(found.body.loss)
    assert replace(found.body, loss=0.0) == EvalFinished(3, 0.0, None, 100, 0.5)


def test_the_schema_accepts_what_is_written_and_refuses_what_is_not() -> None:
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(events_schema())
    Draft202012Validator.check_schema(events_schema())
    for value in [*map(body, EVENT_TYPES), *FILLED]:
        validator.validate(written(Event(value, 1.0)))
    good = written(Event(StateChanged(RunState.RUNNING), 1.0))
    assert validator.is_valid({**good, "newer": 1})
    assert not validator.is_valid({**good, "state": "hibernating"})
    assert not validator.is_valid({**good, "reason": 7})
    assert not validator.is_valid({"kind": "warning", "time_s": 1.0})
