"""Counts where the host waits for the device, as a training process takes its steps.

On a CPU nothing waits, but the calls that would on a GPU are the same: those that make a Python value of a tensor, and
those that make a tensor of Python values on a device.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, resolve_name

from orchestrator.domain.events import EventBody
from orchestrator.domain.policy.hang import Phase
from tests.cluster.train_processes import FileSession

READS = frozenset(
    {"item", "tolist", "cpu", "numpy", "nonzero", "__float__", "__int__", "__bool__", "__index__", "__array__"}
)
OURS, THEIRS = "/orchestrator/", "/deepspeed/"
AHEAD_S = 0.02
"""Longer than the feed takes to build the next batch."""


class HostWaits(TorchFunctionMode):
    """Counts waits while it is entered, by the code that is to answer for them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        """Of Convoy's own code, as `file:line function`."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = (resolve_name(func) or getattr(func, "__name__", "")).rpartition(".")[2]
        if name in READS or (func is torch.tensor and kwargs.get("device") is not None):
            frame = _caller()
            if frame is not None:
                self.found.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {name}")
        return func(*args, **kwargs)


def _caller() -> FrameType | None:
    """The innermost frame of Convoy's code; None if DeepSpeed's lies between."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if THEIRS in file:
            return None
        if OURS in file and "/site-packages/" not in file:
            return frame
        frame = frame.f_back
    return None


@dataclass(frozen=True)
class WaitsFound(EventBody):
    """Of the tests: what was found in each step."""

    KIND = "test.waits"
    waits: dict[int, list[str]]


@dataclass
class CountingSession(FileSession):
    """Reports after the last step what was found in each, as the event `WaitsFound` of rank 0."""

    waits: dict[int, list[str]] = field(default_factory=dict)
    mode: Any = None

    def beat(self, step: int, phase: Phase) -> None:
        super().beat(step, phase)
        if phase is Phase.DATA and self.mode is None:
            self.mode = HostWaits()
            self.mode.__enter__()
        elif phase is Phase.OPTIMIZER:
            time.sleep(AHEAD_S)
        elif phase is Phase.SNAPSHOT:
            self.waits[step], self.mode.found = self.mode.found, []
        elif phase is Phase.FINISH:
            self.mode.__exit__(None, None, None)
            self.mode = None
            self.report_event(WaitsFound(self.waits))
