"""The process of one worker: a training thread that runs the entry point, and an agent that answers the driver."""

import contextlib
import ctypes
import faulthandler
import gc
import importlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING

from orchestrator.clusters.ray.attachment import logs_directory
from orchestrator.clusters.ray.gpus import show_assigned_gpus, show_gpus
from orchestrator.clusters.ray.processes import allow_to_trace, die_with_parent
from orchestrator.clusters.ray.ray_settings import WORKER_ENV
from orchestrator.domain.devices.cpu_threads import thread_environment
from orchestrator.domain.devices.device import (
    ACCELERATOR_VARIABLE,
    CUDA,
    DeviceProblem,
    device_environment,
    user_variables,
)
from orchestrator.domain.devices.device_room import DeviceRoom
from orchestrator.domain.engine_errors import CAUSE
from orchestrator.domain.errors import ConvoyError, UsageError, cause_of_error
from orchestrator.domain.events import Event, EventBody
from orchestrator.domain.policy.hang import Phase
from orchestrator.domain.session import Leave, Session, TrainPlan, TrainResult, VaultAccess
from orchestrator.gang.agent.gpu_figures import GpuWatch
from orchestrator.gang.agent.output_capture import OutputCapture
from orchestrator.gang.agent.ray_session import Assignment, RaySession
from orchestrator.gang.agent.report_frames import ReportAccess
from orchestrator.gang.agent.report_queue import Heartbeat, ReportBatch, ReportQueue
from orchestrator.gang.agent.report_sender import ReportSender
from orchestrator.gang.file_transfer import Chunk, FileEntry, Files, host_cache, remove_host_cache
from orchestrator.gang.health.stacks import Stacks, own_stacks
from orchestrator.json_values import JsonObject

if TYPE_CHECKING:
    from orchestrator.clusters.ray.handles import ActorHandle, ObjectRef

EntryPoint = Callable[[Session, TrainPlan], TrainResult]
DeviceCheck = Callable[[], DeviceProblem | DeviceRoom | None]
Answer = Callable[[JsonObject], None]

# Ray runs an actor's method in a thread of its own, which glibc gives an arena that it trims after every step: the
# pages of activations and gradients are handed back and faulted in again, 3 to 5% of a step. One arena, rarely
# trimmed, is what a script's main thread has. The threshold of mmap is the highest that every glibc takes; unset it
# would stay at 128 KiB once another one is set. Read when a process starts, so it reaches workers through their
# raylet's environment (https://sourceware.org/glibc/manual/latest/html_node/Memory-Allocation-Tunables.html).
MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
}

NONE: Mapping[str, str] = MappingProxyType({})
AGENT_GROUP = "agent"
AGENT_THREADS = 4
"""A long poll, a notice, an interruption, and a spare one."""
INTERRUPT_PAUSE_S = 0.03
FILE_CALL_S = 100.0
"""How long the driver's file server may take for one chunk; less than a checkpoint may go without progress, so that
the save fails and training continues."""


@dataclass(frozen=True)
class Hello:
    """Location of a worker process."""

    node_id: str
    node_ip: str
    host: str
    pid: int
    output: str
    """File that takes the process's stdout and stderr, on its own host."""
    gpus: tuple[str, ...] = ()
    """Ids of the GPUs that it sees, as its node's mask names them."""


@dataclass(frozen=True)
class Raised:
    """A complete exception of a worker as text, so that it arrives even if it cannot be pickled."""

    rank: int
    type: str
    message: str
    traceback_text: str
    hint: str | None = None
    details: JsonObject = field(default_factory=dict)
    """`ConvoyError.details`: JSON values."""


@dataclass(frozen=True)
class FileAccess:
    """How a worker reaches the driver's files."""

    server: "ActorHandle"
    """The file server."""
    marker: str
    word: str
    run_id: str


def worker_environment(
    cpus: float, gpus: int, driver: Mapping[str, str], own: Mapping[str, str] = NONE
) -> dict[str, str]:
    """Variables of a worker process; they replace those of its node. `own`: of `resources.env`.

    Settings of the user, in the driver's environment or in the job, override defaults; but the device is that of the
    spec, whatever any environment says.
    """
    env = {
        **thread_environment(cpus, {**driver, **own}),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        **WORKER_ENV,
        **{name: driver.get(name, value) for name, value in MALLOC.items()},
    }
    carried = ("HF_HUB_OFFLINE", "HF_HOME", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "TORCH_EXTENSIONS_DIR")
    env.update({name: driver[name] for name in carried if name in driver})
    return {**env, **user_variables(gpus, driver, own), **device_environment(gpus)}


def place_of(entry: str) -> tuple[ModuleType, str]:
    """The module and the name of the attribute in an import string `module:attribute`; "" if there is no colon."""
    module, _, attribute = entry.partition(":")
    return importlib.import_module(module), attribute


class WorkerActor:
    """Runs in a Ray worker process. `warm` and `run` share one thread; the agent's methods have their own."""

    def __init__(self, env: dict[str, str], fate_share: bool, one_host: bool) -> None:
        """`fate_share`: the process dies with its raylet, even if it hangs in native code. `one_host`: all workers are
        on the driver's host."""
        if fate_share:
            die_with_parent()
        os.environ.update(env)
        self._gpus = self.assigned_gpus() if env.get(ACCELERATOR_VARIABLE) == CUDA else ()
        self._one_host = one_host
        self._outbox = ReportQueue()
        self._sender: ReportSender | None = None
        self._gpu_watch: GpuWatch | None = None
        self._session: RaySession | None = None
        self._running: int | None = None
        """The generation whose entry point runs now."""
        self._trainer: int | None = None
        """The training thread."""
        self._notices: dict[int, tuple[dict[str, str], Leave]] = {}
        """Of generations, what came before their session."""
        self._capture = OutputCapture(self.output_path(), self._outbox.put_lines)
        faulthandler.enable(all_threads=True)

    def assigned_gpus(self) -> tuple[str, ...]:
        """Make the assigned GPUs the only ones that this process sees; return their ids."""
        return show_assigned_gpus()

    def output_path(self) -> Path:
        """The file for this process's output."""
        return logs_directory() / f"convoy-worker-{os.getpid()}.log"

    def hello(self) -> Hello:
        """Where this process is."""
        import ray

        context = ray.get_runtime_context()
        return Hello(
            node_id=context.get_node_id(),
            node_ip=ray.util.get_node_ip_address(),
            host=socket.gethostname(),
            pid=os.getpid(),
            output=str(self._capture.path),
            gpus=self._gpus,
        )

    def take_gpus(self, ids: tuple[str, ...]) -> None:
        """For a standby process, to which Ray assigned no GPUs: use those of the worker that it replaces."""
        self._gpus = ids
        show_gpus(ids)

    def check_device(self, entry: str) -> DeviceProblem | DeviceRoom | None:
        """Call a function that returns why this process cannot use its GPU, or how much memory the GPU has."""
        try:
            check: DeviceCheck = getattr(*place_of(entry))
            return check()
        except Exception as error:  # noqa: BLE001  # most likely torch cannot be imported
            lines = str(error).strip().splitlines() or [""]
            hint = "Convoy's installation on that node is broken: run `convoy doctor` there"
            return DeviceProblem(f"{type(error).__name__}: {lines[0]}", hint)

    def warm(self, entries: tuple[str, ...]) -> float:
        """Import modules before they are needed; a `module:function` is called. Returns the seconds it took. Failures
        show again in `run`."""
        started = time.monotonic()
        for entry in entries:
            with contextlib.suppress(Exception):
                module, name = place_of(entry)
                if name:
                    getattr(module, name)()
        # Imported objects stay alive: scanning them in each garbage collection would slow down recoveries.
        gc.collect()
        gc.freeze()
        return time.monotonic() - started

    def ask(self, entry: str, value: JsonObject) -> Raised | None:
        """Call a function that answers a question of the driver; return its UsageError, if it raises one."""
        try:
            answer: Answer = getattr(*place_of(entry))
            answer(value)
        except UsageError as error:
            raised = describe(-1, error)
            where = "" if self._one_host else f" (on {socket.gethostname()})"
            return replace(raised, message=raised.message + where)
        return None

    def run(self, entry: str, plan: TrainPlan, assignment: Assignment, access: FileAccess) -> TrainResult | Raised:
        """Call the entry point. An exception is returned, not raised."""
        files = Files(RemoteFiles(access.server), access.marker, access.word, host_cache(access.run_id), os.environ)
        session = RaySession(assignment, self._outbox, files)
        generation = assignment.generation
        self._trainer = threading.get_ident()
        self._push_reports(assignment.reports)
        if self._gpus and self._gpu_watch is None:
            self._gpu_watch = GpuWatch(self._place_in_gang, socket.gethostname(), self._report_event)
        if assignment.vault is not None:
            allow_to_trace(assignment.vault.pid)
        self._running, self._session = generation, session
        values, leave = self._notices.pop(generation, ({}, Leave.NO))
        session.deliver(values)
        session.request_leave(leave)
        try:
            train: EntryPoint = getattr(*place_of(entry))
            result: TrainResult | Raised = train(session, plan)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  # a SystemExit of user code must not end the actor silently
            result = describe(assignment.rank, error)
        finally:
            _give_memory_back()  # an exception's frames held the engine until now
            self._running = None
            self._capture.drain()
            self._outbox.nudge()
        return result

    def _push_reports(self, access: ReportAccess | None) -> None:
        """Connect to the driver, unless that has been done. If it cannot be done, the driver polls."""
        sender = self._sender
        if access is None or (sender is not None and sender.access == access):
            return
        if sender is not None:
            sender.close()
        with contextlib.suppress(OSError, RuntimeError):
            self._sender = ReportSender(access, self._outbox, self._beat)

    def _place_in_gang(self) -> tuple[int, int] | None:
        """Rank and world size while it trains."""
        session = self._session
        return (session.rank, session.world_size) if session is not None and self._running is not None else None

    def _report_event(self, body: EventBody) -> None:
        self._outbox.put(Event(body, time.time()))

    def _beat(self) -> Heartbeat:
        return self._session.heartbeat if self._session is not None else Heartbeat(-1, 0, Phase.START)

    def poll(self, timeout_s: float, seen: int) -> ReportBatch:
        """Agent: all reports that are queued, waiting up to `timeout_s` for one. `seen`: the last batch that arrived; a
        later one is sent again."""
        batch = self._outbox.take(self._beat(), timeout_s, lambda: self._running is not None, seen)
        return replace(batch, heartbeat=self._beat())

    def notify(self, generation: int, values: dict[str, str], leave: Leave) -> None:
        """Agent: values that other ranks of a generation published, and whether to leave at the next step boundary."""
        session = self._session
        if session is not None and session.generation == generation:
            session.deliver(values)
            session.request_leave(leave)
        elif session is None or generation > session.generation:
            known, wish = self._notices.get(generation, ({}, Leave.NO))
            self._notices[generation] = ({**known, **values}, max(wish, leave))

    def stacks(self) -> Stacks:
        """Agent: the stacks of this process's threads, and how far its collectives are."""
        session = self._session
        counts = session.collective_counts() if session is not None else None
        return replace(own_stacks(self._trainer), counts=counts)

    def save(self, generation: int) -> None:
        """Agent: have a checkpoint written of the next step boundary."""
        session = self._session
        if session is not None and session.generation == generation:
            session.request_save()

    def use_vault(self, generation: int, vault: VaultAccess) -> None:
        """Agent: keep the state in this vault from the next step boundary on, because the previous one ended or is
        late."""
        session = self._session
        if session is not None and session.generation == generation:
            allow_to_trace(vault.pid)
            session.use_vault(vault)

    def interrupt(self, generation: int, patience_s: float) -> bool:
        """Agent: interrupt a generation's training thread in a collective that cannot finish; return whether it has
        ended."""
        deadline = time.monotonic() + patience_s
        session = self._session
        while self._running == generation and session is not None and time.monotonic() < deadline:
            session.interrupt()
            time.sleep(INTERRUPT_PAUSE_S)
        return self._running != generation

    def clean(self, run_id: str) -> None:
        """Remove what this run left on this host outside the run's directory."""
        self._capture.drain()
        remove_host_cache(run_id)


class RemoteFiles:
    """`FileService` through the driver's file server actor. Calls raise what the server raised, and TimeoutError."""

    def __init__(self, server: "ActorHandle") -> None:
        self._server = server

    def listing(self, path: str) -> list[FileEntry]:
        found: list[FileEntry] = _answer(self._server.listing.remote(path))
        return found

    def read(self, path: str, offset: int, crc: int) -> Chunk:
        chunk: Chunk = _answer(self._server.read.remote(path, offset, crc))
        return chunk

    def checksum(self, path: str, offset: int, end: int, crc: int) -> tuple[int, int]:
        found: tuple[int, int] = _answer(self._server.checksum.remote(path, offset, end, crc))
        return found

    def write(self, path: str, token: str, offset: int, data: bytes) -> int:
        end: int = _answer(self._server.write.remote(path, token, offset, data))
        return end

    def commit(self, path: str, token: str, size_bytes: int) -> None:
        _answer(self._server.commit.remote(path, token, size_bytes))

    def move_into_place(self, path: str, final: str) -> None:
        _answer(self._server.move_into_place.remote(path, final))


def _answer(ref: "ObjectRef") -> "ObjectRef":
    """The result of a call. The type checker does not know it, as it does not know Ray."""
    import ray

    try:
        return ray.get(ref, timeout=FILE_CALL_S)
    except ray.exceptions.GetTimeoutError:
        raise TimeoutError(f"the driver's file server has not answered for {FILE_CALL_S:.0f} s") from None
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def describe(rank: int, error: BaseException) -> Raised:
    """An exception as values; its traceback without our own frame. `details` contain its cause (`CAUSE`), if known."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    name, message = type(error).__name__, str(error)
    cause = cause_of_error(error)
    details: JsonObject = {} if cause is None else {CAUSE: cause.value}
    if isinstance(error, ConvoyError):  # our own errors know their cause
        return Raised(rank, name, message, text, error.hint, {**details, **error.details})
    return Raised(rank, name, message, text, details=details)


def _give_memory_back() -> None:
    """Return memory of the last run to the kernel and the GPU driver: the next run needs it, and NCCL allocates outside
    of torch."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        with contextlib.suppress(Exception):  # on a GPU that has failed every call raises what failed before
            torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
