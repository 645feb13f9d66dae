"""The driver of a drilled run, in a process of its own: `python -m orchestrator.drill.driver_child`, for `drilled_run`.

Reads one JSON object from stdin, writes one for each event and step to stdout, and its outcome as the last.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Literal, TextIO

from orchestrator.domain.errors import ConvoyError
from orchestrator.domain.events import Event
from orchestrator.domain.events.event_codec import encode_event
from orchestrator.domain.fault_plan import Arranged, NodeAddress
from orchestrator.domain.policy.numeric import Injection
from orchestrator.domain.step_report import StepReport
from orchestrator.json_values import (
    JsonFields,
    JsonObject,
    integer,
    mapping,
    objects,
    optional,
    parse_object,
    text,
    text_mapping,
)
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
        self.send({"step": report.to_message()})

    def send(self, value: JsonObject) -> None:
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
        outcome = _carry(parse_object(sys.stdin.readline()), relay, stop)
    except ConvoyError as error:
        relay.send({"error": error.message, "hint": error.hint, "exit_code": error.exit_code})
        return 1
    relay.send({"outcome": {**vars(outcome), "run_dir": str(outcome.run_dir), "state": outcome.state.value}})
    return 0


def _carry(asked: JsonFields, relay: Relay, stop: threading.Event) -> RunOutcome:
    """`asked`: see `DrilledRun`, which sends it. Raises JsonShapeError."""
    home = Path(text(asked, "home"))
    arranged = Arranged(
        injections=tuple(_injection(each) for each in objects(asked, "injections")),
        nodes=tuple(_node(each) for each in objects(asked, "nodes")),
    )
    resumed = optional(text, asked, "resume")
    if resumed is not None:
        return resume_run(Path(resumed), home, [relay], stop, arranged=arranged)
    spec = JobSpec.model_validate_json(json.dumps(mapping(asked, "spec")))
    job = LoadedJob(spec, Path(text(asked, "path")), text(asked, "source"))
    return run_job(job, home, [relay], stop, arranged=arranged)


def _injection(value: JsonFields) -> Injection:
    return Injection(_KINDS[text(value, "kind")], integer(value, "step"), integer(value, "rank"))


def _node(value: JsonFields) -> NodeAddress:
    return NodeAddress(
        text(value, "address"),
        text(value, "interface"),
        optional(text, value, "namespace"),
        text_mapping(value, "labels"),
    )


_KINDS: dict[str, Literal["nan", "spike", "oom"]] = {"nan": "nan", "spike": "spike", "oom": "oom"}


def _private_stdout() -> TextIO:
    """Stdout for us alone: what libraries print goes to stderr."""
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return ours


if __name__ == "__main__":
    sys.exit(main())
