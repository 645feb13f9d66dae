"""The process of one tracker: reads points from its stdin, a line of JSON each, and gives them to a library.

What the library does (hang, raise, print, leak) stays in here. The driver reads stdout: `ready`, `logged`, `problem`,
`ending`, `failed` and `done`. The process ends with its input, at the latest `ALONE_S` after the run or
its driver has ended.
"""

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import BinaryIO

from orchestrator.json_values import JsonObject, JsonValue, integer, mapping, parse_object, text
from orchestrator.lasting_thread import LastingThread
from orchestrator.trackers.tracker_points import Point
from orchestrator.trackers.tracker_sink import OpenSink, TrackedRun, TrackerSink

ALONE_S = 60.0
"""How long a tracker may take to deliver its last points after the end of the run, or of its driver."""
ORPHAN_LOOK_S = 1.0
KILLED_CODE = 255
"""The exit code that a tracker is given for a run whose driver was killed."""
Say = Callable[[JsonObject], None]


def main() -> int:
    """Entry point: `python -m orchestrator.trackers.tracker_child`."""
    # Ctrl-C is for the driver, which then ends this process in order.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    watch = _EndWatch()
    LastingThread("watch of the driver", watch.turn)
    # What the library prints must not mix with the answers.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    code = serve(sys.stdin.buffer, _to(answers), watch.run_ended)
    sys.stderr.flush()
    os._exit(code)  # the library may have threads and exit handlers that wait


def serve(lines: Iterable[bytes], say: Say, ended: Callable[[], None]) -> int:
    """Log what comes until the end of the run; the process's exit code. `ended` is called at that end."""
    logged, sink = 0, None
    try:
        for line in lines:
            message = parse_object(line)
            if sink is None:
                sink = _open(message, say)
                say({"ready": sink.place})
            elif "end" in message:
                ended()
                say({"ending": logged})
                sink.close(integer(message, "end"))
                say({"done": logged})
                return 0
            else:
                sink.log(Point.from_json(mapping(message, "point")))
                logged += 1
                say({"logged": logged})
        if sink is not None:
            sink.close(KILLED_CODE)
    except Exception as error:  # noqa: BLE001  # of a foreign library: anything
        say({"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"})
        return 1
    return 0


def _open(message: JsonObject, say: Say) -> TrackerSink:
    module, _, name = text(message, "sink").partition(":")
    opened: OpenSink = getattr(importlib.import_module(module), name)
    return opened(TrackedRun.from_json(mapping(message, "run")), lambda problem: say({"problem": problem}))


def _to(stream: BinaryIO) -> Say:
    def say(value: JsonValue) -> None:
        try:
            stream.write(json.dumps(value).encode() + b"\n")
        except OSError:
            return  # the driver is gone; the input ends too

    return say


class _EndWatch:
    """Ends this process if the run or the driver has ended and the tracker does not come to an end."""

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._ended_s: float | None = None

    def run_ended(self) -> None:
        self._ended_s = time.monotonic()

    def turn(self) -> bool:
        """Look once a second."""
        if self._ended_s is None and os.getppid() != self._parent:
            self.run_ended()
        if self._ended_s is not None and time.monotonic() - self._ended_s >= ALONE_S:
            os._exit(1)
        time.sleep(ORPHAN_LOOK_S)
        return True


if __name__ == "__main__":
    sys.exit(main())
