"""The drilled run as this process sees it: a driver that can be killed, and another that resumes."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from orchestrator.clusters.ray.processes import start_bound
from orchestrator.domain.errors import ConvoyError, UsageError
from orchestrator.domain.events import FaultInjected, Observer, RunCreated, RunState
from orchestrator.domain.events.event_codec import decode_event
from orchestrator.domain.fault_plan import Arranged
from orchestrator.domain.policy.numeric import Injection
from orchestrator.domain.step_report import StepReport
from orchestrator.json_values import JsonFields, JsonObject, integer, mapping, optional, parse_object, text
from orchestrator.metrics.event_bus import EventBus
from orchestrator.run.launcher import RunOutcome
from orchestrator.spec.loading.load import LoadedJob

TICK_S = 0.1
PATIENCE_S = 8.0
"""From asking a driver to stop to killing it: it does so within 5 s."""


class DrilledRun:
    """A run whose driver is a child of this process, and dies with it."""

    def __init__(
        self,
        job: LoadedJob,
        home: Path,
        arranged: Arranged,
        environment: Mapping[str, str],
    ) -> None:
        """`environment`: of the driver."""
        self._bus = EventBus()
        self._job, self._home, self._environment = job, home, environment
        self._injections, self._nodes = arranged.injections, arranged.nodes
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False
        self._run_dir: Path | None = None

    def watch(self, name: str, observer: Observer, essential: bool = False) -> None:
        """Deliver its events and steps to an observer of this process, by the thread that calls `carry`; see
        `EventBus.add`."""
        self._bus.add(name, observer, essential)

    def kill(self) -> None:
        """SIGKILL to the driver; `carry` starts another one, which resumes the run."""
        if self._process is not None:
            self._killed = True
            self._process.kill()

    def carry(self, stop: threading.Event) -> RunOutcome:
        """The run to its end, through as many drivers as it takes. Setting `stop` ends it.

        Raises UsageError and other errors of Convoy's that the driver raised.
        """
        while True:
            self._killed = False
            outcome = self._drive(stop)
            if outcome is not None:
                return outcome

    def _drive(self, stop: threading.Event) -> RunOutcome | None:
        """One driver; None if it was killed by us."""
        self._process = process = start_bound(
            [sys.executable, "-m", "orchestrator.drill.driver_child"], self._environment, talks=True
        )
        assert process.stdin is not None
        asked = {
            "path": str(self._job.path.absolute()),
            "spec": self._job.spec.model_dump(mode="json"),
            "source": self._job.source,
            "home": str(self._home),
            "resume": None if self._run_dir is None else str(self._run_dir),
            "injections": [asdict(each) for each in self._injections],
            "nodes": [asdict(each) for each in self._nodes],
        }
        try:
            process.stdin.write(json.dumps(asked).encode() + b"\n")
            process.stdin.close()
            last = self._listen(process, stop)
        finally:
            process.kill()  # it has ended, unless an essential observer raised
            process.wait()
        if last is not None and "outcome" in last:
            return _outcome(mapping(last, "outcome"))
        if last is not None:
            kind = UsageError if last["exit_code"] == UsageError.exit_code else ConvoyError
            raise kind(text(last, "error"), optional(text, last, "hint"))
        if self._killed and self._run_dir is not None and not stop.is_set():
            return None
        if stop.is_set():
            return self._unfinished()
        raise RuntimeError(f"the run's driver ended with code {process.returncode}: its traceback is above")

    def _unfinished(self) -> RunOutcome:
        where = self._run_dir or self._home
        return RunOutcome(where.name, where, RunState.STOPPED, "stopped on request", 0, 130)

    def _listen(self, process: subprocess.Popen[bytes], stop: threading.Event) -> JsonObject | None:
        """Pass everything that the driver reports to the observers until it ends; return its final message, if there is
        one."""
        assert process.stdout is not None
        rest, last, deadline = b"", None, float("inf")
        look = select.poll()
        look.register(process.stdout.fileno(), select.POLLIN)
        while True:
            if stop.is_set() and deadline == float("inf"):
                deadline = time.monotonic() + PATIENCE_S
                process.send_signal(signal.SIGTERM)
            if time.monotonic() > deadline:
                process.kill()
            if not look.poll(TICK_S * 1000.0):
                continue
            data = os.read(process.stdout.fileno(), 1 << 16)
            if not data:
                return last  # what is in `rest` is a line that was cut off
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                said = parse_object(line)
                if not self._tell(said):
                    last = said

    def _tell(self, said: JsonFields) -> bool:
        """Pass on an event or a step; False if it is neither."""
        if "step" in said:
            self._bus.publish(StepReport.from_json(mapping(said, "step")))
            return True
        if "event" not in said:
            return False
        event = decode_event(mapping(said, "event"))
        if event is None:
            raise RuntimeError(f"the run's driver wrote an event that cannot be read: {said}")
        if isinstance(event.body, RunCreated):
            self._run_dir = self._home / event.body.run_id
        elif isinstance(event.body, FaultInjected):
            self._injections = _without(self._injections, event.body)
        self._bus.publish(event)
        return True


def _without(injections: Sequence[Injection], came: FaultInjected) -> tuple[Injection, ...]:
    return tuple(each for each in injections if (each.kind, each.step, each.rank) != (came.fault, came.step, came.rank))


def _outcome(value: JsonFields) -> RunOutcome:
    return RunOutcome(
        run_id=text(value, "run_id"),
        run_dir=Path(text(value, "run_dir")),
        state=RunState(text(value, "state")),
        reason=optional(text, value, "reason"),
        step=integer(value, "step"),
        exit_code=integer(value, "exit_code"),
    )
