"""Running whole commands and reading what they cost."""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

CONVOY = str(Path(sys.executable).with_name("convoy"))


@dataclass(frozen=True)
class Row:
    """One line of the result table: ours, the peer's, the ratio (ours / theirs) and its bar."""

    name: str
    ours: str
    peer: str
    ratio: float | None
    bar: str
    met: bool | None
    """None: not measured on this machine."""
    note: str = ""


@dataclass(frozen=True)
class Finished:
    """A finished command: wall seconds, output, and the most memory its process tree held at once."""

    seconds: float
    stdout: str
    peak_rss_bytes: int

    def last_json(self) -> dict:
        """The last line of the output that is a JSON object."""
        for line in reversed(self.stdout.splitlines()):
            if line.startswith("{"):
                return json.loads(line)
        raise ValueError(f"no JSON in the output:\n{self.stdout[-2000:]}")


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """The environment both sides run in: one thread a process, nothing looked up on a network."""
    quiet = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "RAY_DEDUP_LOGS": "0"}
    return {**os.environ, **quiet, **(extra or {})}


def tree_rss_bytes(pid: int) -> int:
    """Resident bytes of a process and all its descendants, shared pages counted once each (PSS where readable)."""
    total = 0
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def exit_on_sigterm() -> None:
    """End in order on SIGTERM too, so that processes and files of a benchmark go with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def kill_tree(process: subprocess.Popen) -> None:
    """SIGKILL a command and all its descendants."""
    try:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()


def run(
    command: Sequence[str],
    env: dict[str, str] | None = None,
    watch_memory: bool = False,
    timeout_s: float | None = None,
) -> Finished:
    """Run a command to its end. Raises RuntimeError with its output where it fails or takes too long."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env or environment()
    )
    peak = 0
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.2):
            peak = max(peak, tree_rss_bytes(process.pid))

    watcher = threading.Thread(target=sample, daemon=True)
    if watch_memory:
        watcher.start()
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        kill_tree(process)
        output, _ = process.communicate()
        output += f"\nkilled after {timeout_s:.0f} s"
    except BaseException:
        kill_tree(process)
        raise
    finally:
        done.set()
    seconds = time.perf_counter() - start
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{output[-4000:]}")
    return Finished(seconds, output, peak)


def alternate(rounds: int, ours: Callable[[], float], peer: Callable[[], float]) -> tuple[list[float], list[float]]:
    """Measure A B A B ..., so that a drift of the machine's speed hits both alike."""
    pairs = [(ours(), peer()) for _ in range(rounds)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def median_ratio(ours: list[float], peer: list[float]) -> float:
    """Median of the ratios pair by pair."""
    return statistics.median(a / b for a, b in zip(ours, peer, strict=True))
