"""Processes that must not outlive us, and signal handlers that others must not replace."""

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import psutil

PR_SET_PDEATHSIG = 1
PR_SET_PTRACER = 0x59616D61
CLONE_NEWNET = 0x40000000
_SIGACTION_BYTES = 256  # more than `struct sigaction` needs on any Linux


def start_bound(
    command: Sequence[str],
    env: Mapping[str, str],
    namespace: str | None = None,
    talks: bool = False,
    passed: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a process that the kernel kills when the calling **thread** ends, whatever way that ends.

    It ignores Ctrl-C, which a terminal sends to the whole foreground group: we decide when it stops. `namespace`: file
    of a network namespace that it runs in. `talks`: its stdin and stdout are pipes, its stderr is ours; else all are
    closed to it. `passed`: descriptors that it inherits under the same numbers.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()
    network = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC) if namespace is not None else None

    def bind() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        if network is not None and libc.setns(network, CLONE_NEWNET) != 0:
            os._exit(1)
        if os.getppid() != parent:  # the parent died between fork and prctl
            os._exit(1)

    try:
        return subprocess.Popen(
            list(command),
            env=dict(env),
            stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
            stdout=subprocess.PIPE if talks else subprocess.DEVNULL,
            stderr=None if talks else subprocess.DEVNULL,
            pass_fds=passed,
            preexec_fn=bind,  # noqa: PLW1509  # only system calls: safe beside threads
        )
    finally:
        if network is not None:
            os.close(network)


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def allow_to_trace(pid: int) -> None:
    """Let a process of this host, and its children, read this one's memory where the kernel lets parents alone do so
    (Yama's `ptrace_scope` 1). Does nothing on other kernels."""
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_ulong(pid), 0, 0, 0)


def kill_processes(processes: Iterable[psutil.Process], patience_s: float) -> list[psutil.Process]:
    """SIGKILL processes and wait until they are gone; those still there after `patience_s`.

    A process is known by its pid and its start time: the kernel uses pids again, and the process that has one of them
    now may be anybody's.
    """
    left = list(processes)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    deadline = time.monotonic() + patience_s
    while left:
        left = [process for process in left if _alive(process)]
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    return left


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False


@contextlib.contextmanager
def kept_signal_handlers(numbers: Sequence[int]) -> Iterator[None]:
    """Put the handlers of these signals back afterwards, Python's and the kernel's.

    Ray's core installs a C++ handler for SIGTERM that prints a stack and dies, under Python's feet: our own
    handler would never run. `signal.signal` cannot mend it from another thread than the main one; the C call can.
    In the main thread Ray replaces Python's handler too.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in numbers} if in_main_thread else {}
    libc = ctypes.CDLL(None, use_errno=True)
    saved = {}
    for number in numbers:
        buffer = ctypes.create_string_buffer(_SIGACTION_BYTES)
        if libc.sigaction(number, None, buffer) == 0:
            saved[number] = buffer
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number, buffer in saved.items():
            libc.sigaction(number, buffer, None)
