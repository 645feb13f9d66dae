from pathlib import Path

import pytest

from orchestrator.domain.events import (
    CheckpointRestored,
    EventBody,
    NumericFaultFound,
    RecoveryFinished,
    RecoveryStarted,
    StateChanged,
    WorkerFailed,
    WorkerHung,
    WorkerPhase,
)
from orchestrator.domain.run_layout import RunLayout
from orchestrator.metrics.incidents import IncidentRecorder
from tests.events import event

pytestmark = pytest.mark.unit


def tell(recorder: IncidentRecorder, kind: type[EventBody], time_s: float, **fields: object) -> None:
    recorder.on_event(event(kind, time_s, **fields))


def begin(recorder: IncidentRecorder) -> None:
    tell(recorder, WorkerPhase, 90.0, phase="train", rank=0)
    tell(recorder, WorkerFailed, 100.5, rank=2, error="its process died", traceback="line a\nline b")
    tell(recorder, StateChanged, 100.5, state="recovering", reason="worker of rank 2 failed")
    tell(
        recorder, RecoveryStarted, 100.6, incident=1, rank=2, cause="its process died", detected_s=100.0,
        step=17, from_step=15, source="storage", checkpoint="/runs/x/step-15",
    )  # fmt: skip


def test_the_page_tells_the_whole_story(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    recorder = IncidentRecorder(layout)
    begin(recorder)
    assert "not over" in layout.incident(1).read_text()
    tell(
        recorder, CheckpointRestored, 104.0, step=15, path="/runs/x/step-15", seconds=0.25,
        saved_world_size=4,
    )  # fmt: skip
    tell(recorder, RecoveryFinished, 105.0, incident=1, step=16, world_size=3, seconds=5.0, steps_recomputed=2)
    text = layout.incident(1).read_text()
    assert text.startswith("# Incident 1: worker 2 lost after step 17\n")
    assert "| steps recomputed | 2 |" in text
    assert "| from detection to the next finished step | 5.00 s |" in text
    assert "| +0.50 | worker 2: its process died |" in text
    assert "| +4.00 | state of step 15 restored from /runs/x/step-15 in 0.25 s, left by 4 workers |" in text
    assert "| +5.00 | step 16 finished: training continues |" in text
    assert "line a\nline b" in text


def test_a_hang_shows_the_culprits_stack(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    recorder = IncidentRecorder(layout)
    tell(
        recorder, WorkerHung, 99.5, rank=2, node="10.0.0.7", step=18, phase="forward", seconds=12.5,
        reason="it is in forward of step 18, the others are in exchange of step 18",
        stacks="incidents/incident-001-stacks", stack='training thread (1)\n  File "mine.py", line 3, in stuck',
    )  # fmt: skip
    begin(recorder)
    text = layout.incident(1).read_text()
    assert "| -0.50 | worker 2 hangs: no progress for 12.5 s, it is in forward of step 18, the others" in text
    assert '## Stack of worker 2\n\n```\ntraining thread (1)\n  File "mine.py", line 3, in stuck\n```' in text
    assert "`incidents/incident-001-stacks/rank-N.txt`" in text
    begin(recorder)
    assert "Stack of" not in layout.incident(1).read_text()  # it belongs to one incident


def test_a_rollback_has_a_page_of_its_own_kind(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    recorder = IncidentRecorder(layout)
    tell(recorder, WorkerFailed, 100.5, rank=0, error="TrainingDivergedError: the loss is nan", traceback="")
    tell(
        recorder, NumericFaultFound, 100.6, fault="loss_not_finite", step=18, rank=1, value="nan",
        first_position=204, count=12, action="rollback", from_step=15, skipped_first=204, skipped_count=12,
    )  # fmt: skip
    tell(
        recorder, RecoveryStarted, 100.7, incident=1, rank=1, cause="the loss is nan at step 18",
        detected_s=100.0, step=17, from_step=15, source="storage", checkpoint="/runs/x/step-15", skipped=[204, 12],
    )  # fmt: skip
    text = layout.incident(1).read_text()
    assert text.startswith("# Incident 1: numeric fault at step 18\n")
    assert "| left out | 12 samples, [204, 216) of the order |" in text
    assert "continue from step 15 (storage), without 12 samples, [204, 216) of the order |" in text
    tell(recorder, RecoveryFinished, 105.0, incident=1, step=16, world_size=3, seconds=5.0, steps_recomputed=2)
    begin(recorder)
    assert layout.incident(1).read_text().startswith("# Incident 1: worker 2 lost after step 17\n")


def test_one_that_ends_the_run_says_so(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    recorder = IncidentRecorder(layout)
    begin(recorder)
    tell(recorder, StateChanged, 107.0, state="failed", reason="the cluster cannot hold 4 workers")
    text = layout.incident(1).read_text()
    assert "| +7.00 | run failed: the cluster cannot hold 4 workers |" in text
    assert "not over" in text


def test_a_full_disk_does_not_stop_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "incidents").write_text("in the way")
    begin(IncidentRecorder(RunLayout(tmp_path)))
    assert "cannot write" in capsys.readouterr().err
