"""The head of a run's cluster, and what happens to the run while it does not answer.

Training needs no head: steps, copies and checkpoints continue without one. Starting a worker or a vault needs it. Ray
ends every process of a cluster, the driver included, a minute after its head was last reached
(`ray_settings.WITHOUT_HEAD_S`). So a checkpoint is written before that, and the run ends with a reason unless the head
is back in time.
"""

import time
from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

from orchestrator.clusters.ray.reachability import listens
from orchestrator.domain.errors import ClusterError
from orchestrator.domain.events import Emit, WarningIssued
from orchestrator.gang.vaults.checkpoint_committer import CheckpointCommitter

TELL_S = 3.0
PARK_S = 15.0
END_S = 45.0
"""Leaves a quarter of Ray's minute to end the run."""
LOOK_S = 0.1


class Course(StrEnum):
    """What to do, by how long the head has been silent."""

    CONTINUE = "continue"
    TELL = "tell"
    """Warn, and start nothing that needs the head."""
    PARK = "park"
    """Leave at a step boundary, with a checkpoint in storage."""
    END = "end"


def course(silent_s: float) -> Course:
    """`silent_s`: since both signals reported the head as gone; 0 while it answers."""
    if silent_s >= END_S:
        return Course.END
    if silent_s >= PARK_S:
        return Course.PARK
    return Course.TELL if silent_s >= TELL_S else Course.CONTINUE


class Silence(Protocol):
    """Reports whether the head answers."""

    @property
    def silent_s(self) -> float:
        """How long it has neither answered a request nor accepted a connection; 0 while it does."""


class Head:
    """The head of one run's cluster. For the driver's thread."""

    def __init__(self, address: str, silence: Silence, resume_hint: str, emit: Emit) -> None:
        """`address`: of the GCS; `resume_hint`: how a user continues the run if the head is lost."""
        self._address, self._silence, self._resume_hint, self._emit = address, silence, resume_hint, emit
        self._told = False

    @property
    def silent(self) -> bool:
        """No request must be sent to it: that could block until it is back."""
        return self._silence.silent_s > 0.0

    @property
    def left_s(self) -> float:
        """Seconds until the run must end."""
        return max(0.0, END_S - self._silence.silent_s)

    @property
    def lost(self) -> bool:
        """It did not come back in time."""
        return course(self._silence.silent_s) is Course.END

    def round(self) -> bool:
        """Emit due warnings; return whether to leave at the next step boundary."""
        now = course(self._silence.silent_s)
        if now is Course.CONTINUE:
            if self._told and not self.silent:
                self._told = False
                self._emit(WarningIssued(f"the head of the cluster at {self._address} answers again"))
            return False
        if not self._told:
            self._told = True
            self._emit(WarningIssued(self._message()))
        return now in (Course.PARK, Course.END)

    def outlast(self, saves: CheckpointCommitter | None, stopped: Callable[[], bool]) -> None:
        """As `require`, but first wait for checkpoints that are being written, as far as there is time."""
        if self.silent and saves is not None:
            for event in saves.end(self.left_s):
                self._emit(event.body)
        self.require(stopped)

    def require(self, stopped: Callable[[], bool]) -> None:
        """Return when it accepts connections, or when `stopped`. Raises ClusterError if it has been silent for
        `END_S`."""
        while not listens(self._address) and not stopped():
            self.round()
            if self.lost:
                raise ClusterError(
                    f"the head of the cluster at {self._address} has been unreachable for {END_S:.0f} s, and Ray "
                    "ends all processes of a cluster without a head",
                    hint=self._resume_hint,
                )
            time.sleep(LOOK_S)

    def _message(self) -> str:
        return (
            f"the head of the cluster at {self._address} does not answer and refuses connections: training continues, "
            f"but lost workers cannot be replaced; after {PARK_S:.0f} s without the head a checkpoint is written"
        )
