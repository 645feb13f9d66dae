"""A tracker's process, as the driver sees it: points go in without ever waiting, news come out."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO

import psutil

import orchestrator
from orchestrator.json_values import JsonObject, JsonShapeError, integer, parse_object
from orchestrator.lasting_thread import LastingThread

CHILD = "orchestrator.trackers.tracker_child"
MAX_QUEUED = 4096
"""Points that wait for a tracker. Further ones are dropped: the curves have a gap then, and the driver no less memory
than it had."""
POLL_S = 0.2
"""How long a point may lie before it is sent on."""
READ_BYTES = 64 * 1024
SHOWN_STDERR_CHARS = 300
CLOSE_LOOK_S = 0.02
KILL_WAIT_S = 1.0
_SECRETS = ("WANDB_API_KEY",)
"""Variables whose values no message may have in it."""


class NewsKind(StrEnum):
    """What a tracker has to say."""

    READY = "ready"
    """It takes points; the text says where they are."""
    PROBLEM = "problem"
    """Something is not as it was asked for; it goes on."""
    FAILED = "failed"
    """It takes no more points."""


@dataclass(frozen=True)
class News:
    """What has happened to a tracker, once for each thing that can."""

    kind: NewsKind
    text: str


@dataclass(frozen=True)
class Patience:
    """How long the end of a run waits for a tracker."""

    total_s: float
    """In all: Weights & Biases uploads then what it has not uploaded yet, or has not found its server yet."""
    stuck_s: float
    """For a tracker that has begun, and takes no point of those that wait."""
    stopped_s: float
    """In all, if the run was stopped."""


class TrackerProcess:
    """One tracker. `put` and `news` are for the thread that has the run's events; nothing but `close` waits."""

    def __init__(self, name: str, hello: JsonObject, directory: Path, env: Mapping[str, str]) -> None:
        """`hello`: the first message. The process works in `directory`. Raises OSError if it cannot be started."""
        self.accepted, self.dropped, self.logged = 0, 0, 0
        self._env = env
        self._queue: deque[bytes] = deque([_line(hello)])
        self._unsent = b""
        self._answers, self._stderr = b"", b""
        self._news: deque[News] = deque()
        self._over = threading.Event()
        self.left_alone = False
        """Whether it goes on by itself after `close`."""
        self._began, self._ending, self._done = False, False, False
        self._progress_s = self._asked_s = time.monotonic()
        self._process = subprocess.Popen(
            # -P: a folder `wandb` in the working directory is not the package.
            [sys.executable, "-P", "-m", CHILD],
            cwd=directory,
            env={**env, "PYTHONPATH": _module_path(env)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._pipes: tuple[IO[bytes], IO[bytes], IO[bytes]] = (
            self._process.stdin,
            self._process.stdout,
            self._process.stderr,
        )
        for pipe in self._pipes:
            os.set_blocking(pipe.fileno(), False)
        self._thread = LastingThread(f"tracker {name}", self._turn)

    def put(self, message: JsonObject) -> None:
        """Queue a point. If the tracker is over or does not keep up, it is dropped and counted."""
        if self._over.is_set() or len(self._queue) >= MAX_QUEUED:
            self.dropped += 1
            return
        self.accepted += 1
        self._queue.append(_line(message))

    def news(self) -> list[News]:
        """What has happened since the last call."""
        found = []
        while self._news:
            found.append(self._news.popleft())
        return found

    @property
    def lost(self) -> int:
        """Points that the tracker has not taken. Final after `close`."""
        return self.dropped + self.accepted - self.logged

    def ask_to_end(self, exit_code: int) -> None:
        """Have it deliver what it has, and end. Does not wait. No point may follow."""
        self._queue.append(_line({"end": exit_code}))
        self._asked_s = self._progress_s = time.monotonic()

    def close(self, patience: Patience, hurry: Callable[[], bool]) -> bool:
        """Wait for the end that was asked for; whether it has come. No longer than `patience` allows, and hardly once
        `hurry`. A process that has not ended by then is killed, with all that it has started; but if the run was
        stopped, and it has taken all points, it delivers them alone and then ends (`tracker_child.ALONE_S`)."""
        while not self._over.wait(CLOSE_LOOK_S):
            now_s = time.monotonic()
            limit_s = patience.stopped_s if hurry() else patience.total_s
            stuck = self._began and not self._ending and now_s - self._progress_s >= patience.stuck_s
            if stuck or now_s - self._asked_s >= limit_s:
                break
        self.left_alone = not self._over.is_set() and self._ending and hurry()
        self._over.set()  # what is killed now has not failed
        self._thread.stop()
        if not self.left_alone:
            self._kill()
        self._thread.join(KILL_WAIT_S)
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.close()
        return self._done

    def _kill(self) -> None:
        """The process and what it has started, some of it in sessions of its own. Before it is reaped: until then
        nothing else can have its id."""
        started: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            started = psutil.Process(self._process.pid).children(recursive=True)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for process in started:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._process.wait()

    def _turn(self) -> bool:
        """Send what can be sent, read what there is."""
        stdin, stdout, stderr = self._pipes
        if not self._unsent and self._queue:
            self._unsent = self._queue.popleft()
        poll = select.poll()
        poll.register(stdout, select.POLLIN)
        poll.register(stderr, select.POLLIN)
        if self._unsent:
            poll.register(stdin, select.POLLOUT)
        ready = {descriptor for descriptor, _ in poll.poll(POLL_S * 1000)}
        if stderr.fileno() in ready:
            self._stderr = (self._stderr + (stderr.read(READ_BYTES) or b""))[-READ_BYTES:]
        if stdout.fileno() in ready:
            data = stdout.read(READ_BYTES)
            if not data:
                self._end_unexpectedly()
                return False
            self._take(data)
        if stdin.fileno() in ready:
            try:
                self._unsent = self._unsent[os.write(stdin.fileno(), self._unsent) :]
            except BlockingIOError:
                return True
            except OSError:
                self._unsent = b""  # it has closed its input; its output says why, or ends
        return not self._over.is_set()

    def _take(self, data: bytes) -> None:
        *lines, self._answers = (self._answers + data).split(b"\n")
        for line in lines:
            try:
                answer = parse_object(line)
                for key, value in answer.items():
                    if key in ("logged", "done", "ending"):
                        self.logged = integer(answer, key)
                    else:
                        self._say(NewsKind(key), str(value))
            except (JsonShapeError, ValueError):
                continue
            self._progress_s = time.monotonic()
            self._began = self._began or "ready" in answer
            self._ending = self._ending or "ending" in answer
            self._done = self._done or "done" in answer
            if "done" in answer or "failed" in answer:
                self._over.set()

    def _end_unexpectedly(self) -> None:
        """Its output has ended, and it has not said why."""
        if not self._over.is_set():
            last = self._stderr.decode(errors="replace").strip().rpartition("\n")[2][-SHOWN_STDERR_CHARS:]
            self._say(NewsKind.FAILED, "its process has ended" + (f": {last}" if last else ""))
            self._over.set()

    def _say(self, kind: NewsKind, text: str) -> None:
        for name in _SECRETS:
            secret = self._env.get(name)
            if secret:
                text = text.replace(secret, "***")
        self._news.append(News(kind, text))


def _module_path(env: Mapping[str, str]) -> str:
    """`PYTHONPATH` with which the process finds this package. An installed one is found anyway."""
    root = str(Path(orchestrator.__file__).parents[1])
    paths = [env.get("PYTHONPATH", ""), "" if root in sysconfig.get_paths().values() else root]
    return os.pathsep.join(path for path in paths if path)


def _line(message: JsonObject) -> bytes:
    return json.dumps(message).encode() + b"\n"
