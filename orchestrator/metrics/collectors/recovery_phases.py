"""Seconds of a recovery by phase, from its events. Pure."""

from dataclasses import dataclass, field
from enum import StrEnum

from orchestrator.domain.events import Event, RecoveryFinished, RecoveryStarted, WorkerPhase


class RecoveryPhase(StrEnum):
    """Phases of a recovery, in their order."""

    DETECTION = "detection"
    """From the last sign of life until the driver knew; not counted in `RecoveryFinished.seconds`."""
    DECISION = "decision"
    """Until it was decided from which state training continues."""
    REBUILD = "rebuild"
    """Processes, rendezvous, model and engine."""
    RESTORE = "restore"
    """Reading the state."""
    FIRST_STEP = "first_step"
    """The first step after it."""


_ENTERED = {"restore": RecoveryPhase.RESTORE, "train": RecoveryPhase.FIRST_STEP, "export": RecoveryPhase.FIRST_STEP}
"""What a phase of the workers is the beginning of; those before are a part of rebuilding."""


@dataclass
class RecoveryTimer:
    """Fed with a run's events. A recovery that fails is part of the next one: its phases begin again with that."""

    _since_s: float = 0.0
    _phase: RecoveryPhase | None = None
    """What the recovery is in; None: there is none."""
    _seconds: dict[RecoveryPhase, float] = field(default_factory=dict)

    def on_event(self, event: Event) -> dict[RecoveryPhase, float] | None:
        """Seconds by phase, when a recovery has finished. All times are of Unix clocks, those of phases of rank 0's
        host: none is below 0."""
        match event.body:
            case RecoveryStarted() as started:
                self._leave(started.detected_s)
                alive_s = started.detected_s if started.alive_s is None else started.alive_s
                self._add(RecoveryPhase.DETECTION, started.detected_s - alive_s)
                self._add(RecoveryPhase.DECISION, event.time_s - started.detected_s)
                self._phase, self._since_s = RecoveryPhase.REBUILD, event.time_s
            case WorkerPhase(phase=phase) if self._phase is not None and phase in _ENTERED:
                self._leave(event.time_s)
                self._phase = _ENTERED[phase]
            case RecoveryFinished() if self._phase is not None:
                self._leave(event.time_s)
                seconds, self._seconds, self._phase = self._seconds, {}, None
                return seconds
        return None

    def _leave(self, now_s: float) -> None:
        """The present phase ends."""
        if self._phase is not None:
            self._add(self._phase, now_s - self._since_s)
        self._since_s = max(self._since_s, now_s)

    def _add(self, phase: RecoveryPhase, seconds: float) -> None:
        self._seconds[phase] = self._seconds.get(phase, 0.0) + max(0.0, seconds)
