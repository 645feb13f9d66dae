"""The scale of the loss under fp16, and updates that are left out. Engines are stand-ins: no CPU trains in fp16."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.runtime.fp16 import loss_scaler
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler

from orchestrator.train.engine.engine import Stepper
from tests.unit.train.builders import spec_with

pytestmark = pytest.mark.unit


class Engine:
    """As DeepSpeed's: an update with gradients that overflowed is counted and left out, and the scale changes."""

    def __init__(self, scaler: Any) -> None:
        self.optimizer = SimpleNamespace(loss_scaler=scaler)
        self.module = torch.nn.Linear(1, 1)
        self.skipped_steps = 0
        self.overflows = False
        self.boundary = True

    def is_gradient_accumulation_boundary(self) -> bool:
        return self.boundary

    def step(self) -> None:
        if self.boundary:
            self.skipped_steps += self.overflows
            self.optimizer.loss_scaler.update_scale(self.overflows)

    def get_global_grad_norm(self) -> float:
        return float("inf") if self.overflows else 1.0


@pytest.fixture(autouse=True)
def _no_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's scale asks for the rank, to log an overflow on one of them only."""
    monkeypatch.setattr(loss_scaler.dist, "get_rank", lambda: 1)


def dynamic() -> DynamicLossScaler:
    return DynamicLossScaler(2.0**8, scale_window=2, min_scale=1.0, delayed_shift=1, consecutive_hysteresis=False)


def stepper(precision: str = "fp16", scaler: Any = None) -> tuple[Stepper, Engine]:
    engine: Any = Engine(scaler or dynamic())
    return Stepper(spec_with(train={"precision": precision}, zero={"stage": 1}), engine, 1), engine


def test_the_scale_that_the_update_had_is_reported() -> None:
    steps, engine = stepper()
    seen = []
    for overflows in (False, True, False, False, False, False):
        engine.overflows = overflows
        steps.step()
        seen.append((steps.loss_scale, steps.skipped))
    assert seen == [(256.0, False), (256.0, True), (128.0, False), (128.0, False), (128.0, False), (256.0, False)]


def test_micro_steps_change_nothing() -> None:
    steps, engine = stepper()
    engine.overflows = True
    steps.step()
    engine.boundary = engine.overflows = False
    steps.step()
    assert (steps.loss_scale, steps.skipped) == (256.0, True), "of the last update"


def test_a_fixed_scale_is_reported_and_none_without_fp16() -> None:
    fixed, _ = stepper(scaler=LossScaler(scale=64.0))
    fixed.step()
    assert fixed.loss_scale == 64.0
    plain, _ = stepper(precision="bf16")
    plain.step()
    assert plain.loss_scale is None
