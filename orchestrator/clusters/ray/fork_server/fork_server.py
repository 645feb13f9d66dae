"""The fork server: imports what workers need, stays single-threaded, and forks a process for each client.

A forked process belongs to its client: it is killed if the client ends, and the client ends with its exit code. It
also dies with the server, which dies with the driver. Ray must not be imported before the fork: its library reads
every `RAY_*` variable when it is loaded, and those of a worker differ. No tensor operation and no CUDA call is made
before the fork either: neither threads nor a device's state survive it.

usage: python server.py LISTENING_FD STATUS_FILE MODULE...
"""

import array
import contextlib
import ctypes
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.clusters.ray.fork_server.fork_request import ForkRequest

PACKAGE_ROOT = str(Path(__file__).resolve().parents[4])
CLONE_NEWNET, PR_SET_PDEATHSIG = 0x40000000, 1
REQUEST_TIMEOUT_S = 5.0
"""From a client's connection to the end of its request."""
ACCEPT_PAUSE_S = 0.05
"""After an accept that failed."""
PASSED_FDS = 4
"""stdin, stdout, stderr and the network namespace."""
SINGLE_THREADED = {
    # NumPy's library starts its threads when it is loaded; PyTorch's starts them at the first use.
    "OPENBLAS_NUM_THREADS": "1",
    # Asking whether there is a GPU must not initialise CUDA.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
WORST_OOM_SCORE = "1000"
"""What a raylet gives to its workers, so that the kernel ends them before the raylet (Ray's
`worker_oom_score_adjustment`). Here the raylet knows the client's process only."""


@dataclass
class Child:
    """A forked process and the connection of the client that it belongs to."""

    pid: int
    connection: socket.socket


@dataclass
class ForkServerProcess:
    """Listens, forks, and passes exit codes on. One thread."""

    listener: socket.socket
    status: Path
    children: dict[int, Child] = field(default_factory=dict)
    """By pid."""
    refusals: int = 0
    """Requests that were refused."""

    def serve(self, env: Mapping[str, str]) -> "Forked":
        """Serve until killed. `env`: what the modules were imported under. Returns in forked processes only."""
        from orchestrator.clusters.ray.fork_server.fork_request import obstacle

        selector = selectors.DefaultSelector()
        selector.register(self.listener, selectors.EVENT_READ)
        wake = _wake_on_child_exit()
        selector.register(wake, selectors.EVENT_READ)
        namespaces = own_namespaces()
        while True:
            for key, _ in selector.select():
                if key.fileobj is wake:
                    wake.recv(4096)
                    self._reap(selector)
                elif key.fileobj is self.listener:
                    asked = accept(self.listener)
                    if asked is None:
                        continue
                    reason = obstacle(env, namespaces, asked.request)
                    pid = os.fork() if reason is None else None
                    if pid == 0:
                        self._forget(selector, wake)
                        return asked
                    self._answer(selector, asked, pid, reason)
                else:  # a client has ended: what it stood for has no owner any more
                    assert isinstance(key.data, Child)
                    if self.children.get(key.data.pid) is key.data:  # else it has ended, and its pid may be another's
                        selector.unregister(key.fileobj)
                        os.kill(key.data.pid, signal.SIGKILL)

    def _answer(self, selector: selectors.BaseSelector, asked: "Forked", pid: int | None, reason: str | None) -> None:
        """Tell a client the pid of its process, or why it has none."""
        for fd in asked.fds:
            os.close(fd)
        with contextlib.suppress(OSError):  # the client has ended: the selector tells
            asked.connection.sendall(json.dumps({"pid": pid} if reason is None else {"refused": reason}).encode())
        if pid is not None:
            child = self.children[pid] = Child(pid, asked.connection)
            selector.register(child.connection, selectors.EVENT_READ, child)
            return
        asked.connection.close()
        if reason is not None:
            self.refusals += 1
            write_status(self.status, {"refused": reason, "refusals": self.refusals})

    def _reap(self, selector: selectors.BaseSelector) -> None:
        """Tell the clients of processes that have ended."""
        while self.children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            child = self.children.pop(pid, None)
            if child is None:
                continue
            with contextlib.suppress(KeyError, ValueError):
                selector.unregister(child.connection)
            code = os.waitstatus_to_exitcode(status)
            with contextlib.suppress(OSError):
                child.connection.sendall(str(code if code >= 0 else 128 - code).encode())
            child.connection.close()

    def _forget(self, selector: selectors.BaseSelector, wake: socket.socket) -> None:
        """In a forked process: close what is the server's, so that others notice when its clients end."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        selector.close()
        wake.close()
        self.listener.close()
        for child in self.children.values():
            child.connection.close()


@dataclass(frozen=True)
class Forked:
    """A request with what came along: descriptors and the client's connection."""

    request: "ForkRequest"
    fds: list[int]
    connection: socket.socket

    def become(self, path: Sequence[str]) -> None:
        """In the forked process: take the client's place, and run the worker. `path`: of an interpreter that was just
        started."""
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        self.connection.close()
        os.setpgid(0, 0)  # as a raylet starts workers: it signals the group of one that ends
        for number in (0, 1, 2):
            os.dup2(self.fds[number], number)
        if self.request.namespaces.get("net") != own_namespaces()["net"]:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(self.fds[3], CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "cannot enter the node's network namespace")
        for fd in self.fds:
            if fd > 2:
                os.close(fd)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(WORST_OOM_SCORE)
        os.umask(self.request.umask)
        os.environ.clear()
        os.environ.update(self.request.env)
        os.chdir(self.request.cwd)
        tempfile.tempdir = None  # it was looked up in the server's environment
        random.seed()
        if "numpy" in sys.modules:
            import numpy

            numpy.random.seed()  # the global generator that a fresh process would have
        sys.argv = list(self.request.argv)
        sys.path[:] = [str(Path(sys.argv[0]).parent), *path]
        runpy.run_path(sys.argv[0], run_name="__main__")


def accept(listener: socket.socket) -> Forked | None:
    """The next request; None if it is no request, or not this user's."""
    from orchestrator.clusters.ray.fork_server.fork_request import ForkRequest

    fds: list[int] = []
    try:
        connection, _ = listener.accept()
    except OSError:  # too many open files, or the client has gone
        time.sleep(ACCEPT_PAUSE_S)
        return None
    try:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if struct.unpack("3i", credentials)[1] != os.getuid():
            raise ValueError("another user")
        return Forked(ForkRequest.from_json(_receive(connection, fds)), fds, connection)
    except (OSError, ValueError):
        connection.close()
        for fd in fds:
            os.close(fd)
        return None


def _receive(connection: socket.socket, fds: list[int]) -> bytes:
    """A request's text; its descriptors go to `fds`. Raises OSError, ValueError."""
    from orchestrator.clusters.ray.fork_server.fork_request import MAX_REQUEST_BYTES

    deadline = time.monotonic() + REQUEST_TIMEOUT_S
    connection.settimeout(REQUEST_TIMEOUT_S)
    room = array.array("i", [0] * PASSED_FDS)
    head, ancillary, _, _ = connection.recvmsg(4, socket.CMSG_SPACE(room.itemsize * PASSED_FDS))
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            passed = array.array("i")
            passed.frombytes(payload[: len(payload) - len(payload) % passed.itemsize])
            fds.extend(passed)
    size = int.from_bytes(head, "big")
    if len(head) != 4 or len(fds) != PASSED_FDS or size > MAX_REQUEST_BYTES:
        raise ValueError("not a request")
    data = bytearray()
    while len(data) < size:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        piece = connection.recv(min(65536, size - len(data)))
        if not piece:
            raise ValueError("a request was cut off")
        data += piece
    connection.settimeout(None)
    return bytes(data)


def own_namespaces() -> dict[str, int]:
    """Inodes of this process's namespaces by name."""
    return {link.name: link.stat().st_ino for link in Path("/proc/self/ns").iterdir()}


def preload(modules: Sequence[str]) -> None:
    """Import modules. One that cannot be imported is left out: the worker says what is wrong with it."""
    for name in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a forked process would copy every page that it looks at


def write_status(path: Path, value: dict[str, object]) -> None:
    """Tell the driver, in a file: there may be nobody to read it."""
    with contextlib.suppress(OSError):
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(value))
        partial.replace(path)


def _wake_on_child_exit() -> socket.socket:
    """A socket that becomes readable when a child has ended."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(theirs.detach(), warn_on_full_buffer=False)
    return ours


def _device_opened() -> bool:
    """Whether CUDA's or ROCm's driver has been loaded into this process, by whatever way."""
    mapped = Path("/proc/self/maps").read_text()
    return "libcuda.so" in mapped or "/dev/kfd" in mapped


def main(arguments: Sequence[str]) -> int:
    """Run the server; its exit code if it must not fork."""
    started = time.monotonic()
    del sys.path[0]  # this file's directory
    path = list(sys.path)
    if PACKAGE_ROOT not in path:
        sys.path.insert(0, PACKAGE_ROOT)
    from orchestrator.clusters.ray.fork_server.fork_request import unfit

    env = dict(os.environ)
    os.environ.update(SINGLE_THREADED)
    listener, status = socket.socket(fileno=int(arguments[0])), Path(arguments[1])
    preload(arguments[2:])
    reason = unfit(len(os.listdir("/proc/self/task")), list(sys.modules), _device_opened())  # noqa: PTH208
    if reason is not None:
        write_status(status, {"refused": reason})
        return 1
    write_status(status, {"ready_s": time.monotonic() - started})
    ForkServerProcess(listener, status).serve(env).become(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
