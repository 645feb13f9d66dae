"""The driver of a drilled run, in a process of its own: `python -m orchestrator.drill.driver_child`, for `drilled_run`.

Reads one JSON object from stdin, writes one for each event and step to stdout, and its outcome as the last.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

from orchestrator.domain.errors import ConvoyError
from orchestrator.domain.events import Event
from orchestrator.domain.events.event_codec import encode_event
from orchestrator.domain.fault_plan import Arranged, NodeAddress
from orchestrator.domain.policy.numeric import Injection
from orchestrator.domain.step_report import StepReport
from orchestrator.run.launcher import RunOutcome, resume_run, run_job
from orchestrator.spec.job import JobSpec
from orchestrator.spec.loading.load import LoadedJob


class Relay:
    """Observer that passes everything on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def on_event(self, event: Event) -> None:
        self.send({"event": encode_event(event)})

    def on_step(self, report: StepReport) -> None:
        self.send({"step": report.to_json()})

    def send(self, value: dict[str, Any]) -> None:
        """One line. Numbers that JSON has no word for are read back by the same library."""
        with self._lock:
            self._stream.write(json.dumps(value) + "\n")
            self._stream.flush()


def main() -> int:
    """Run the driver; 0 if there is an outcome."""
    relay, stop = Relay(_private_stdout()), threading.Event()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    try:
        outcome = _carry(json.loads(sys.stdin.readline()), relay, stop)
    except ConvoyError as error:
        relay.send({"error": error.message, "hint": error.hint, "exit_code": error.exit_code})
        return 1
    relay.send({"outcome": {**vars(outcome), "run_dir": str(outcome.run_dir), "state": outcome.state.value}})
    return 0


def _carry(asked: dict[str, Any], relay: Relay, stop: threading.Event) -> RunOutcome:
    home = Path(asked["home"])
    arranged = Arranged(
        injections=tuple(Injection(**each) for each in asked["injections"]),
        nodes=tuple(NodeAddress(**each) for each in asked["nodes"]),
    )
    if asked["resume"] is not None:
        return resume_run(Path(asked["resume"]), home, [relay], stop, arranged=arranged)
    spec = JobSpec.model_validate_json(json.dumps(asked["spec"]))
    job = LoadedJob(spec, Path(asked["path"]), asked["source"])
    return run_job(job, home, [relay], stop, arranged=arranged)


def _private_stdout() -> TextIO:
    """Stdout for us alone: what libraries print goes to stderr."""
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return ours


if __name__ == "__main__":
    sys.exit(main())
