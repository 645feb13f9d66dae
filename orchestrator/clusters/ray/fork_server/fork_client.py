"""Stands where a raylet expects the worker process that it starts: asks the fork server for one, and lives as long as
that does. If the server cannot give one, it becomes the worker itself, as if there were no server.

usage: python -I -S client.py SOCKET PYTHON SETUP_WORKER WORKER ARGS...

It starts in milliseconds because it imports nothing but the standard library: keep it that way.
"""

import array
import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
from typing import Any, NoReturn

PATIENCE_S = 60.0
"""How long the server may take to answer: it may still be importing. Then the worker is started without it. Ray waits
for longer: see `ray_settings.LOCAL_ENV`."""
NAMESPACES = ("ipc", "mnt", "net", "pid", "user", "uts")
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
FORKED = "worker-"
"""This process's name is changed to `worker-<pid of the forked process>`: see `node_processes.descendants`."""
OPTIONS_OF_SETUP = ("--serialized-runtime-env-context", "--language")
"""What Ray's setup_worker.py takes out of the arguments before it runs the worker."""


def main(arguments: list[str]) -> NoReturn:
    """Run as the worker would, and end with its exit code."""
    path, stock = arguments[0], arguments[1:]
    _end_with_parent()
    connection = None if _has_runtime_env(stock) else _ask(path, stock)
    if connection is None:
        os.execv(stock[0], stock)
    answer, pid = connection
    ctypes.CDLL(None).prctl(PR_SET_NAME, f"{FORKED}{pid}".encode(), 0, 0, 0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda number, _: _send(pid, number))
    answer.settimeout(None)
    ended = answer.recv(64)  # empty: the server has ended, and the worker with it
    os._exit(int(ended) if ended else 1)


def _ask(path: str, stock: list[str]) -> tuple[socket.socket, int] | None:
    """The connection and the pid of the process that was forked; None if the server is not there or refuses."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE_S)
    umask = os.umask(0o077)
    os.umask(umask)
    argv = [item for item in stock[2:] if not item.startswith(OPTIONS_OF_SETUP)]
    request = {
        "argv": argv,
        "env": dict(os.environ),
        "cwd": os.getcwd(),  # noqa: PTH109  # pathlib takes 10 ms to import
        "umask": umask,
        "namespaces": {name: os.stat(f"/proc/self/ns/{name}").st_ino for name in NAMESPACES},  # noqa: PTH116
    }
    data = json.dumps(request).encode()
    try:
        network = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        passed = array.array("i", [0, 1, 2, network])
        connection.connect(path)
        connection.sendmsg([len(data).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
        connection.sendall(data)
        answer: dict[str, Any] = json.loads(connection.recv(4096) or b"{}")
        os.close(network)
    except (OSError, ValueError):  # a timeout is an OSError
        answer = {}
    if "pid" in answer:
        return connection, int(answer["pid"])
    connection.close()
    return None


def _has_runtime_env(stock: list[str]) -> bool:
    """Whether Ray wants the worker in an environment of its own, which setup_worker.py would make."""
    for item in stock:
        if item.startswith(f"{OPTIONS_OF_SETUP[0]}="):
            context = json.loads(item.partition("=")[2] or "{}")
            return any(value for name, value in context.items() if name != "py_executable") or (
                context.get("py_executable") not in (None, stock[0])
            )
    return False


def _end_with_parent() -> None:
    """Have the kernel kill this process when the raylet ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() == 1:  # it ended before
        os._exit(1)


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


if __name__ == "__main__":
    main(sys.argv[1:])
