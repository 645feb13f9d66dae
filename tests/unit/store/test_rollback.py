"""Which checkpoint a run goes back to, on real checkpoints, and what is left of the disk afterwards."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.checkpoint.format.checkpoint_manifest import MANIFEST
from orchestrator.checkpoint.storage.checkpoint_catalog import list_checkpoints
from orchestrator.domain.errors import CheckpointError, DataError
from orchestrator.domain.events import CheckpointRejected, EventBody, NumericFaultFound, WarningIssued
from orchestrator.domain.policy.numeric import FaultKind, NumericFault, Refusal
from orchestrator.domain.run_layout import RunLayout
from orchestrator.spec.job import JobSpec
from orchestrator.spec.recovery import RecoverySpec
from orchestrator.store.rollback import Rollback, answer_fault, resume_point
from orchestrator.store.skip_file import read_skips
from tests.events import recorded
from tests.unit.checkpoint.written import flip_byte, write_checkpoint

pytestmark = pytest.mark.unit

BATCH = 12
FAULT = NumericFault(FaultKind.LOSS, 23, 22 * BATCH, BATCH, float("nan"), 1)
SPEC = JobSpec.model_validate(
    {
        "name": "test",
        "model": {"architecture": "gpt2"},
        "tokenizer": {"train": {"vocab_size": 300}},
        "data": {"sources": [{"files": ["*.txt"]}], "sequence_length": 16},
        "train": {"steps": 100, "global_batch": BATCH, "lr": 1e-3},
    }
)


class Told:
    def __init__(self) -> None:
        self.events: list[tuple[type[EventBody], dict[str, Any]]] = []

    def __call__(self, body: EventBody) -> None:
        self.events.append(recorded(body))

    def of(self, kind: type[EventBody]) -> list[dict[str, Any]]:
        return [fields for found, fields in self.events if found is kind]


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    return RunLayout(tmp_path)


def saved(layout: RunLayout, *steps: int) -> None:
    for step in steps:
        write_checkpoint(layout.checkpoints, step, {"w": np.arange(8, dtype=np.float32)})


def steps_on_disk(layout: RunLayout) -> list[int]:
    return [entry.step for entry in list_checkpoints(layout.checkpoints)]


def test_it_goes_back_and_records_what_it_leaves_out(layout: RunLayout) -> None:
    saved(layout, 10, 20)
    told = Told()
    answer = answer_fault(layout, FAULT, SPEC, (), 1000.0, told)
    assert isinstance(answer, Rollback)
    assert (answer.checkpoint, answer.from_step) == (str(layout.checkpoint(20)), 20)
    (skip,) = read_skips(layout)
    assert (skip.first, skip.count, skip.from_step, skip.time_s) == (264, 12, 20, 1000.0)
    assert skip.fault is not None
    assert skip.fault.rank == 1
    (event,) = told.of(NumericFaultFound)
    assert (event["fault"], event["action"], event["value"]) == ("loss_not_finite", "rollback", "nan")
    assert (event["skipped_first"], event["skipped_count"], event["from_step"]) == (264, 12, 20)
    (warning,) = told.of(WarningIssued)
    assert "rolled back, continuing from step 20 without samples [264, 276) of the order" in warning["message"]


def test_newer_checkpoints_do_not_outlive_a_rollback(layout: RunLayout) -> None:
    """Kept, the one of step 22 would be resumed from, and would make retention remove those of the new past."""
    saved(layout, 10, 20, 22)
    spike = replace(FAULT, kind=FaultKind.SPIKE, value=9.0)
    answer = answer_fault(layout, spike, replace_spec(skip_around=1), (), 1000.0, Told())
    assert isinstance(answer, Rollback)
    assert answer.from_step == 20
    assert steps_on_disk(layout) == [20, 10]
    assert (answer.skip.first, answer.skip.count) == (240, 48)  # from step 20 on: batches 21 to 24
    found = resume_point(layout, None, BATCH, Told())
    assert found is not None
    assert found.step == 20


def replace_spec(**fields: Any) -> JobSpec:
    return SPEC.model_copy(update={"recovery": RecoverySpec(**fields)})


def test_a_damaged_checkpoint_is_passed_over(layout: RunLayout) -> None:
    saved(layout, 10, 20)
    flip_byte(layout.checkpoint(20) / "shard-00000.bin", 3)
    told = Told()
    answer = answer_fault(layout, FAULT, SPEC, (), 1000.0, told)
    assert isinstance(answer, Rollback)
    assert answer.from_step == 10
    assert told.of(CheckpointRejected)[0]["path"] == str(layout.checkpoint(20))


def test_no_checkpoint_means_the_beginning_but_bad_ones_do_not(layout: RunLayout) -> None:
    answer = answer_fault(layout, FAULT, SPEC, (), 1000.0, Told())
    assert isinstance(answer, Rollback)
    assert (answer.checkpoint, answer.from_step) == (None, 0)
    layout.skips.unlink()
    saved(layout, 20)
    flip_byte(layout.checkpoint(20) / "shard-00000.bin", 3)
    refused = answer_fault(layout, FAULT, SPEC, (), 1000.0, Told())
    assert isinstance(refused, Refusal)
    assert "there is no good checkpoint from before the fault" in refused.reason
    assert not layout.skips.exists()


def test_what_is_refused_changes_nothing_on_disk(layout: RunLayout) -> None:
    saved(layout, 10, 20, 22)
    for spec, action in ((replace_spec(on_nan="stop"), "stop"), (replace_spec(max_rollbacks=1), "give_up")):
        if action == "give_up":
            assert isinstance(answer_fault(layout, FAULT, spec, (), 1000.0, Told()), Rollback)
        before = (steps_on_disk(layout), read_skips(layout))
        told = Told()
        refused = answer_fault(layout, replace(FAULT, first_position=276), spec, (), 1001.0, told)
        assert isinstance(refused, Refusal)
        assert refused.hint
        assert told.of(NumericFaultFound)[0]["action"] == action
        assert not told.of(WarningIssued)
        assert (steps_on_disk(layout), len(read_skips(layout))) == (before[0], len(before[1]))


def test_the_same_step_again_goes_to_an_older_state(layout: RunLayout) -> None:
    saved(layout, 10, 20)
    answer_fault(layout, FAULT, SPEC, (), 1000.0, Told())
    answer = answer_fault(layout, replace(FAULT, first_position=276), SPEC, (), 1001.0, Told())
    assert isinstance(answer, Rollback)
    assert answer.from_step == 10
    assert steps_on_disk(layout) == [10]
    assert [(skip.first, skip.count) for skip in read_skips(layout)] == [(264, 12), (276, 12)]
    refused = answer_fault(layout, replace(FAULT, first_position=288), SPEC, (), 1002.0, Told())
    assert isinstance(refused, Refusal)
    assert "no good checkpoint older than the one already restored" in refused.reason
    assert steps_on_disk(layout) == [10]


def test_a_checkpoint_that_saw_what_is_left_out_is_not_resumed_from(layout: RunLayout) -> None:
    saved(layout, 10, 20)
    answer_fault(layout, FAULT, SPEC, (), 1000.0, Told())
    saved(layout, 30)  # in the order of before: somebody put a copy back
    told = Told()
    found = resume_point(layout, None, BATCH, told)
    assert found is not None
    assert found.step == 20
    assert "has seen them" in told.of(CheckpointRejected)[0]["reason"]
    assert resume_point(RunLayout(layout.root / "none"), None, BATCH, told) is None


def test_all_checkpoints_bad_is_an_error(layout: RunLayout) -> None:
    saved(layout, 10)
    flip_byte(layout.checkpoint(10) / "shard-00000.bin", 3)
    with pytest.raises(CheckpointError, match="no complete checkpoint: step-00000010"):
        resume_point(layout, None, BATCH, Told())


def test_what_was_never_finished_is_no_checkpoint_that_could_be_bad(layout: RunLayout) -> None:
    """A driver that was killed while its first ones were written: the run begins anew, as it would without them."""
    saved(layout, 10)
    (layout.checkpoint(10) / MANIFEST).unlink()
    told = Told()
    assert resume_point(layout, None, BATCH, told) is None
    assert "never finished" in told.of(CheckpointRejected)[0]["reason"]
    saved(layout, 8)
    (layout.checkpoint(8) / MANIFEST).write_text("{")
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        resume_point(layout, None, BATCH, told)


def test_the_peers_memory_is_gone_back_to_where_it_is_newer(layout: RunLayout) -> None:
    saved(layout, 20)
    answer = answer_fault(layout, FAULT, SPEC, (22, 21), 1000.0, Told())
    assert isinstance(answer, Rollback)
    assert (answer.in_memory, answer.checkpoint, answer.from_step) == (True, None, 22)
    spike = replace(FAULT, kind=FaultKind.SPIKE, value=9.0, step=40, first_position=39 * BATCH)
    answer = answer_fault(layout, spike, SPEC, (39, 38), 1000.0, Told())
    assert isinstance(answer, Rollback)
    assert answer.from_step == 38  # the weights of step 39 made the spike


@pytest.mark.parametrize("text", ["", "{}", '{"skips": [{"first": 3}]}', '{"skips": 3}'])
def test_a_damaged_record_of_skips_is_not_ignored(layout: RunLayout, text: str) -> None:
    layout.skips.write_text(text)
    with pytest.raises(DataError, match="is damaged"):
        read_skips(layout)


def test_a_disk_that_cannot_be_written_is_said(layout: RunLayout) -> None:
    answer = answer_fault(RunLayout(layout.root / "gone"), FAULT, SPEC, (), 1000.0, Told())
    assert isinstance(answer, Refusal)
    assert "cannot be recorded" in answer.reason


def test_a_last_step_saved_aside_is_resumed_from_and_does_not_outlive_a_rollback(tmp_path: Path) -> None:
    """Where storage failed at the last step, that one lies in the run's directory."""
    layout, storage = RunLayout(tmp_path / "runs" / "a"), str(tmp_path / "storage")
    place = Path(layout.checkpoint_place(storage))
    for step in (10, 20):
        write_checkpoint(place, step, {"w": np.arange(8, dtype=np.float32)})
    found = resume_point(layout, storage, BATCH, Told())
    assert found is not None
    assert (found.step, found.place) == (20, str(place / "step-00000020"))
    saved(layout, 30)
    found = resume_point(layout, storage, BATCH, Told())
    assert found is not None
    assert (found.step, found.place) == (30, str(layout.checkpoint(30)))
    flip_byte(next(layout.checkpoint(30).glob("*.bin")), 10)
    told = Told()
    found = resume_point(layout, storage, BATCH, told)
    assert found is not None
    assert found.step == 20
    assert [fields["path"] for fields in told.of(CheckpointRejected)] == [str(layout.checkpoint(30))]
    spec = SPEC.model_copy(update={"checkpoint": SPEC.checkpoint.model_copy(update={"storage": storage})})
    assert isinstance(answer_fault(layout, FAULT, spec, (), 1000.0, Told()), Rollback)
    assert steps_on_disk(layout) == []
    assert [entry.step for entry in list_checkpoints(place)] == [20, 10]
