"""What trackers get to know of a run: points of curves and markers, made from events and step reports. Pure.

Names are those of Hugging Face's Trainer where it has one (`train/loss`, `eval/loss`, `train/learning_rate`), so that
charts that people have made for it show runs of both.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.domain.events import (
    CheckpointSaved,
    EvalFinished,
    Event,
    GangResized,
    NodeDraining,
    NumericFaultFound,
    RecoveryFinished,
    RecoveryStarted,
    RunCreated,
    RunState,
    StateChanged,
)
from orchestrator.domain.step_report import StepReport
from orchestrator.json_values import JsonFields, JsonObject, integer, mapping, number, text


@dataclass(frozen=True)
class Point:
    """Values of curves at one step, and what happened there, if anything worth a marker did."""

    step: int
    time_s: float
    """Unix time."""
    values: Mapping[str, float]
    """By name of the curve. None of them is NaN or infinite."""
    kind: str = ""
    """Of a marker: recovery, resize, ...; empty for values of a step."""
    text: str = ""
    """Of a marker, for people."""

    def to_json(self) -> JsonObject:
        """The point as it is sent to a tracker's process."""
        return {"step": self.step, "time_s": self.time_s, "values": self.values, "kind": self.kind, "text": self.text}

    @classmethod
    def from_json(cls, value: JsonFields) -> "Point":
        """Raises JsonShapeError."""
        found = mapping(value, "values")
        values = {name: number(found, name) for name in found}
        return cls(integer(value, "step"), number(value, "time_s"), values, text(value, "kind"), text(value, "text"))


@dataclass
class PointMaker:
    """Makes the points of one run. Mutable: it counts."""

    interval_steps: int = 1
    """Steps are logged that are multiples of this, and the first one."""
    step: int = 0
    """The last one seen, or that training continues from."""
    _counts: dict[str, int] = field(default_factory=dict)
    _cause: str = ""
    """Of the recovery that is under way."""
    _first: bool = True

    def of_step(self, report: StepReport) -> Point | None:
        """The values of a step; None if it is not to be logged."""
        self.step = report.step
        if report.step % self.interval_steps and not self._first:
            return None
        self._first = False
        return Point(report.step, report.time_s, _values_of(report))

    def of_event(self, event: Event) -> Point | None:
        """What an event adds; None if that is nothing."""
        match event.body:
            case RunCreated(resumed_from_step=resumed):
                self.step = resumed or 0
                return None
            case EvalFinished() as found:
                perplexity = found.perplexity if found.perplexity is not None else math.inf
                return Point(
                    found.step, event.time_s, _finite({"eval/loss": found.loss, "eval/perplexity": perplexity})
                )
            case CheckpointSaved() as saved:
                values = {"checkpoint/seconds": saved.seconds, "checkpoint/bytes": float(saved.bytes)}
                return Point(self.step, event.time_s, _finite(values))
            case RecoveryStarted() as started:
                self._cause = f"worker {started.rank}: {started.cause}"
                return None
            case RecoveryFinished() as recovered:
                return self._recovered(recovered, event.time_s)
            case GangResized() as resized:
                self.step = resized.step
                text = f"{resized.world_size} workers from now on, {resized.before} before"
                return self._marker("resize", text, event.time_s, {"workers/count": resized.world_size})
            case NumericFaultFound() as fault:
                text = f"{fault.fault.value} at step {fault.step}: {fault.action}"
                return self._marker("numeric_fault", text, event.time_s)
            case NodeDraining() as node:
                return self._marker("drain", f"node {node.address or node.node} is about to leave", event.time_s)
            case StateChanged(RunState.FAILED | RunState.STOPPED | RunState.SUCCEEDED as state, reason):
                return self._marker("end", f"{state}" + (f": {reason}" if reason else ""), event.time_s)
            case _:
                return None

    def _recovered(self, recovered: RecoveryFinished, time_s: float) -> Point:
        again = recovered.steps_recomputed
        text = (
            f"recovered in {recovered.seconds:.1f} s with {recovered.world_size} workers, {again} steps recomputed "
            f"({self._cause})"
        )
        values = {
            "events/recovery_seconds": recovered.seconds,
            "events/recomputed_steps": float(again),
            "workers/count": float(recovered.world_size),
        }
        self.step = recovered.step
        return self._marker("recovery", text, time_s, values)

    def _marker(self, kind: str, text: str, time_s: float, values: Mapping[str, float] | None = None) -> Point:
        """With the number of markers of its kind so far, which is a curve that steps up at each of them."""
        self._counts[kind] = self._counts.get(kind, 0) + 1
        counted = {} if kind == "end" else {f"events/{kind}_count": float(self._counts[kind])}
        return Point(self.step, time_s, _finite({**counted, **(values or {})}), kind, text)


def _values_of(report: StepReport) -> dict[str, float]:
    spread = report.ranks.spread
    device = spread.peak_allocated_bytes
    return _finite(
        {
            "train/loss": report.loss,
            "train/grad_norm": report.grad_norm,
            "train/learning_rate": report.lr,
            "train/epoch": report.epoch,
            "throughput/tokens_per_second": report.tokens_per_s,
            "throughput/step_seconds": report.step_time_s,
            "throughput/tflops_per_second": report.tflops_per_s,
            "throughput/mfu": report.mfu,
            "memory/rss_bytes_max": spread.rss_bytes.max,
            "memory/device_peak_bytes_max": device.max if device is not None else None,
            "workers/count": report.world_size,
        }
    )


def _finite(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
