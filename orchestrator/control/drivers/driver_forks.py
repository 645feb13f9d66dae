"""A resident process that has imported what a driver needs, and forks drivers:
`python -m orchestrator.control.drivers.driver_forks MODULE...`.

It reads one JSON object a line from stdin: the fields of `DriverRequest`. It answers with the pid of the driver, or
with why there is none. It ends when its stdin is closed; its drivers stay. It has one thread, since a fork copies
no other. Ray is imported, which takes a third of a second, but not connected: nothing of it runs before the fork.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import random
import signal
import sys
from collections.abc import Sequence

from orchestrator.control.drivers.driver_main import DriverRequest, drive, end_process
from orchestrator.control.drivers.driver_start import open_log, write_launch
from orchestrator.json_values import JsonObject, JsonShapeError, parse_object

PR_SET_NAME = 15
NAME = b"convoy-driver"
FIRST_FREE = 3
"""The first descriptor after stdin, stdout and stderr."""


def serve() -> None:
    """Answer requests until stdin is closed."""
    while line := sys.stdin.readline():
        try:
            request = DriverRequest.from_json(parse_object(line))
            _answer({"pid": fork_driver(request)})
        except (JsonShapeError, OSError) as error:
            _answer({"error": str(error)})


def fork_driver(request: DriverRequest) -> int:
    """Start a driver in a session of its own; its pid. It begins when it has been noted as the run's driver. Raises
    OSError."""
    log = open_log(request.directory)
    noted, note = os.pipe()
    try:
        pid = os.fork()
        if pid == 0:
            os.close(note)
            _become(request, log, noted)
        write_launch(request.directory, pid)
        return pid
    finally:
        for descriptor in (log, noted, note):
            os.close(descriptor)


def _become(request: DriverRequest, log: int, noted: int) -> None:
    """In the forked process: the driver's whole life. `noted` is closed at the other end when it may begin."""
    code = 1
    try:
        os.setsid()
        os.read(noted, 1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for descriptor, number in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(descriptor, number)
        os.closerange(FIRST_FREE, max(nothing, log, noted) + 1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(PR_SET_NAME, NAME, 0, 0, 0)
        random.seed()
        code = drive(request)
    finally:
        end_process(code)


def _answer(value: JsonObject) -> None:
    print(json.dumps(value), flush=True)


def main(modules: Sequence[str]) -> int:
    """Import, say so, serve."""
    for name in modules:
        with contextlib.suppress(ImportError):  # the driver says what is wrong with it
            importlib.import_module(name)
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208
    if threads != 1:
        _answer({"error": f"the preloaded process has {threads} threads, and a fork copies only one"})
        return 1
    gc.collect()
    gc.freeze()  # a collection in a driver would copy every page that it looks at
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # drivers that have ended leave no zombies
    _answer({"ready": True})
    serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
