"""Losses that are made no numbers, in real training processes: nothing of them reaches the weights or the disk."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoint.format.checkpoint_manifest import read_manifest
from orchestrator.checkpoint.storage.checkpoint_catalog import list_checkpoints
from orchestrator.domain.events import NumericFaultFound, WarningIssued
from orchestrator.domain.policy.numeric import Injection
from orchestrator.domain.session import TrainPlan
from orchestrator.spec.job import JobSpec
from tests.cluster.train_processes import GangFailedError, Outcome, TrainProcesses, train_plan
from tests.selection import every_day

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

BATCH = 12
Train = Callable[..., Outcome]


@pytest.fixture
def train(
    train_processes: TrainProcesses, make_spec: Callable[..., JobSpec], prepared_lines: Path, tmp_path: Path
) -> Train:
    """Train two workers under a `recovery` section; `plan` changes fields of the plan."""

    def run(
        name: str, recovery: dict[str, Any], plan: dict[str, Any] | None = None, resume: str | None = None, **spec: Any
    ) -> Outcome:
        whole = make_spec(**spec).model_dump(mode="json")
        job = JobSpec.model_validate({**whole, "recovery": recovery}, strict=False)
        made: TrainPlan = train_plan(job, prepared_lines, tmp_path / name, 2, resume_from=resume)
        return train_processes.run(replace(made, **(plan or {})), 2)

    return run


def nan_at(step: int, rank: int = 1) -> dict[str, Any]:
    return {"injections": (Injection("nan", step, rank),)}


@pytest.mark.parametrize(
    ("stage", "precision"), every_day(product([0, 1, 2, 3], ["fp32", "bf16"]), (0, "fp32"), (1, "bf16"), (3, "fp32"))
)
def test_continue_leaves_the_update_out(stage: int, precision: str, train: Train) -> None:
    """Step 3 changes neither weights nor moments: at a constant rate the other losses are those of a run that never
    met its batch."""
    arguments: dict[str, Any] = {
        "stage": stage,
        "precision": precision,
        "steps": 6,
        "warmup_steps": 0,
        "schedule": "constant",
    }
    outcome = train("hurt", {"on_nan": "continue"}, nan_at(3), **arguments)
    without = train("without", {}, {"skips": ((2 * BATCH, BATCH),)}, **(arguments | {"steps": 5}))
    assert math.isnan(outcome.losses[2])
    tolerance = 1e-6 if precision == "fp32" else 1e-2
    assert [*outcome.losses[:2], *outcome.losses[3:]] == pytest.approx(without.losses, rel=tolerance)
    assert outcome.grad_norms[2] is None
    (fault,) = [fields for kind, fields in outcome.events if kind is NumericFaultFound]
    assert (fault["fault"], fault["step"], fault["rank"], fault["action"]) == ("loss_not_finite", 3, 1, "continue")
    assert [r.first_position for r in outcome.steps] == [0, 12, 24, 36, 48, 60], "the batch counts as used"
    (warning,) = [fields for kind, fields in outcome.events if kind is WarningIssued]
    assert "the update was left out" in warning["message"]


@pytest.mark.parametrize("answer", ["stop", "rollback_and_skip"])
def test_a_bad_step_is_neither_saved_nor_reported(answer: str, train: Train, tmp_path: Path) -> None:
    """A checkpoint is due at the very step; every rank raises, and what is on disk is of the step before."""
    with pytest.raises(GangFailedError) as raised:
        train("run", {"on_nan": answer}, nan_at(4), steps=6, stage=2, checkpoint={"interval_steps": 2})
    assert str(raised.value).count("TrainingDivergedError: the loss is nan at step 4 on rank 1 (samples [36, 48)") == 2
    assert [entry.step for entry in list_checkpoints(tmp_path / "run" / "checkpoints")] == [2]


def test_a_spike_is_found_and_its_history_is_resumed(train: Train, tmp_path: Path) -> None:
    """The window of 8 is full at step 9: a spike there is found, also where most of the window is from before a
    resume; at step 7 it is not judged yet."""
    recovery = {"loss_spike": {"window": 8}}
    arguments: dict[str, Any] = {"steps": 10, "checkpoint": {"interval_steps": 6}}
    quiet = train("early", recovery, {"injections": (Injection("spike", 7, 0),)}, **arguments)
    assert quiet.losses[6] > 10 * quiet.losses[5]
    with pytest.raises(GangFailedError, match=r"the loss is \d+(\.\d+)?, a spike, at step 9 on rank 0"):
        train("late", recovery, {"injections": (Injection("spike", 9, 0),)}, **arguments)
    saved = tmp_path / "late" / "checkpoints" / "step-00000006"
    assert len(read_manifest(saved).extra["losses"]) == 6
    plan: dict[str, Any] = {"injections": (Injection("spike", 9, 1),)}
    with pytest.raises(GangFailedError, match="a spike, at step 9 on rank 1"):
        train("resumed", recovery, plan, resume=str(saved), **arguments)
    told = train("told", {**recovery, "on_nan": "continue"}, {"injections": (Injection("spike", 9, 0),)}, **arguments)
    (fault,) = [fields for kind, fields in told.events if kind is NumericFaultFound]
    assert (fault["fault"], fault["step"]) == ("loss_spike", 9)
    assert len(told.losses) == 10


def test_skips_travel_with_the_state(train: Train, tmp_path: Path) -> None:
    """A checkpoint knows what was left out before it; one that saw what is to be left out is refused."""
    left_out = {"skips": ((36, 24),)}
    whole = train("whole", {}, left_out, steps=8, stage=1, checkpoint={"interval_steps": 3, "keep_last": 9})
    begins = [r.first_position for r in whole.steps]
    assert begins == [0, 12, 24, 60, 72, 84, 96, 108]
    checkpoints = tmp_path / "whole" / "checkpoints"
    assert read_manifest(checkpoints / "step-00000006").extra["skips"] == [[36, 24]]
    assert read_manifest(checkpoints / "step-00000003").position == 60
    # The plan does not say it, the checkpoint does.
    rest = train("rest", {}, resume=str(checkpoints / "step-00000006"), steps=8, stage=1)
    assert [r.first_position for r in rest.steps] == begins[6:]
    assert rest.losses == whole.losses[6:]
    with pytest.raises(GangFailedError, match="it was saved before samples were left out, and has seen them"):
        train("wrong", {}, {"skips": ((12, 12),)}, resume=str(checkpoints / "step-00000003"), steps=8, stage=1)
