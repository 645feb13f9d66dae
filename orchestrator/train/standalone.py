"""Training without Ray: one process, or one of several that `torchrun` started.

python -m orchestrator.train.standalone job.yaml [--set KEY=VALUE] [--run-dir DIR] [--resume CHECKPOINT]
torchrun --nproc-per-node 2 -m orchestrator.train.standalone job.yaml
"""

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.atomic_files import read_json, replace_directory
from orchestrator.domain.devices.device import device_environment
from orchestrator.domain.devices.device_room import DeviceRoom
from orchestrator.domain.errors import CheckpointError, ConvoyError, NotPublishedError, UsageError
from orchestrator.domain.events import DataProgress, Event, EventBody
from orchestrator.domain.events.event_codec import encode_body
from orchestrator.domain.policy.hang import CollectiveCounts, Phase
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.session import Leave, TrainPlan
from orchestrator.domain.step_report import StepReport
from orchestrator.json_values import JsonObject
from orchestrator.metrics.event_bus import EventBus
from orchestrator.planner.gpu_fit import GpuFit

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

    from orchestrator.spec.loading.load import LoadedJob

PREPARED_KEY = "prepared"
ROOM_KEY = "room"
ROOM_TIMEOUT_S = 180.0
"""For the other ranks to have tried their GPUs."""


class StandaloneSession:
    """A `Session` whose ranks share a file system and, with several ranks, torchrun's store.

    `stop` is set from outside (a signal handler): the worker stops at the next step boundary.
    """

    def __init__(self, rank: int, world_size: int, local_rank: int, store: "Store | None") -> None:
        self._rank, self._world_size, self._local_rank = rank, world_size, local_rank
        self._store = store
        self.bus = EventBus()
        self.stop = threading.Event()

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def world_size(self) -> int:
        return self._world_size

    @property
    def local_rank(self) -> int:
        return self._local_rank

    @property
    def node_ip(self) -> str:
        """torchrun knows an address the others reach rank 0 at, and only rank 0's is used."""
        return os.environ.get("MASTER_ADDR", "127.0.0.1")

    @property
    def node_id(self) -> str:
        """There is no cluster."""
        return ""

    def report_step(self, report: StepReport) -> None:
        self.bus.publish(report)

    def report_event(self, body: EventBody) -> None:
        self.bus.emit(body)

    def beat(self, step: int, phase: Phase) -> None:
        """No-op: there is no driver."""

    def progress(self) -> None:
        """No-op: there is no driver."""

    def leave(self) -> Leave:
        return Leave.STOP if self.stop.is_set() else Leave.NO

    def save_asked(self) -> bool:
        """No-op: there is no driver."""
        return False

    @property
    def vault(self) -> None:
        """None: there is no driver and no vault."""
        return None

    def on_interrupt(self, unblock: Callable[[], None] | None) -> None:
        """No-op: torchrun ends all processes if one ends."""

    def count_collectives(self, count: Callable[[], CollectiveCounts | None] | None) -> None:
        """No-op: there is no driver."""

    @property
    def interrupted(self) -> bool:
        """Always false: there is no driver."""
        return False

    def publish(self, key: str, value: str) -> None:
        if self._store is not None:
            self._store.set(key, value)

    def lookup(self, key: str, timeout_s: float) -> str:
        if self._store is None:
            raise TimeoutError(f"{key} is never published: this is the only worker")
        try:
            self._store.wait([key], timedelta(seconds=timeout_s))
        except RuntimeError as error:
            raise NotPublishedError(f"{key} was not published within {timeout_s:.0f} s") from error
        return self._store.get(key).decode()

    @property
    def shares_files(self) -> bool:
        """Always: there is no driver."""
        return True

    def fetch(self, path: str) -> Path:
        local = Path(path)
        if not local.exists():
            raise FileNotFoundError(path)
        return local

    def move_into_place(self, path: str, final: str) -> None:
        replace_directory(Path(path), Path(final))

    def store(self, local: Path, path: str) -> None:
        target = Path(path)
        if local.resolve() == target.resolve():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        partial.write_bytes(local.read_bytes())
        partial.replace(target)


class LinePrinter:
    """Observer that prints one line a step and one an event."""

    def on_event(self, event: Event) -> None:
        if isinstance(event.body, DataProgress):
            return
        fields = " ".join(f"{key}={value}" for key, value in encode_body(event.body).items())
        print(f"{event.body.kind}: {fields}", flush=True)

    def on_step(self, report: StepReport) -> None:
        norm = "-" if report.grad_norm is None else f"{report.grad_norm:.3f}"
        print(
            f"step {report.step}: loss {report.loss:.4f} grad_norm {norm} lr {report.lr:.2e} "
            f"{report.tokens_per_s:.0f} tokens/s {report.step_time_s * 1000:.0f} ms",
            flush=True,
        )


def session_from_environment() -> StandaloneSession:
    """One worker, or the one that torchrun's variables describe. Raises UsageError if they are incomplete."""
    if "RANK" not in os.environ:
        return StandaloneSession(0, 1, 0, None)
    try:
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"RANK is set, but another of torchrun's variables is missing or not a number: {error}",
            hint="Start it with torchrun, or unset RANK.",
        ) from error
    from torch._C._distributed_c10d import PrefixStore, TCPStore

    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(host, port, is_master=rank == 0 and not hosted, wait_for_workers=False)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return StandaloneSession(rank, world_size, local_rank, PrefixStore(f"convoy/{attempt}", store))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one worker; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.train.standalone", description="Train without Ray: one process, or under torchrun."
    )
    parser.add_argument("job", type=Path, help="job file")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/standalone"), help="directory for results")
    parser.add_argument("--resume", type=Path, default=None, metavar="CHECKPOINT", help="checkpoint directory")
    parser.add_argument("--no-export", action="store_true", help="do not write a Hugging Face export at the end")
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except ConvoyError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code


def _run(options: argparse.Namespace) -> int:
    from orchestrator.spec.loading.load import load_job
    from orchestrator.train.worker import run_worker
    from orchestrator.weights.pretrained_location import anchored, check_files

    job = load_job(options.job, options.overrides)
    gpus = job.spec.resources.gpus_per_worker
    room: DeviceRoom | None = None
    os.environ.update(device_environment(gpus))  # before anything imports torch
    check_files(job)
    job = replace(job, spec=anchored(job.spec, job.path.parent))
    session = session_from_environment()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: session.stop.set())
    run_dir = options.run_dir.resolve()
    if gpus:
        from orchestrator.train.engine.gpu_check import device_room, worker_device

        room = smallest_room(session, device_room(worker_device(session, gpus)))  # before hours of tokenising
    if session.rank == 0:
        _record(session.bus, RunLayout(run_dir))
        if options.resume is None:
            _check_base(job)
    fitting = GpuFit(job.spec, session.report_event)
    fitting.check_early(session.world_size, room, _config(job))
    data_dir = _prepared(job, session, run_dir)
    result = run_worker(session, _plan(job, session, run_dir, data_dir, options, room, fitting))
    if result.unsaved is not None:
        raise CheckpointError(f"the last step could not be saved: {result.unsaved}")
    return 0 if result.finished else 1


def smallest_room(session: StandaloneSession, own: DeviceRoom) -> DeviceRoom:
    """Memory of the smallest GPU of all ranks: their plans must be the same. Raises TimeoutError."""
    session.publish(f"{ROOM_KEY}/{session.rank}", json.dumps(asdict(own)))
    rooms = [own]
    for rank in range(session.world_size):
        if rank != session.rank:
            rooms.append(DeviceRoom(**json.loads(session.lookup(f"{ROOM_KEY}/{rank}", ROOM_TIMEOUT_S))))
    return min(rooms, key=lambda room: room.usable_bytes)


def _config(job: "LoadedJob") -> JsonObject:
    """The model's config as far as it is known without loading a library."""
    from orchestrator.planner.model_shape import known_config

    pretrained = job.spec.model.pretrained
    found = read_json(job.path.parent / pretrained / "config.json") if pretrained is not None else None
    return known_config(job.spec, found)


def _check_base(job: "LoadedJob") -> None:
    from orchestrator.train.models.base_check import check_base
    from orchestrator.weights.pretrained_location import at_value

    try:
        check_base({"spec": job.spec.model_dump(mode="json"), "thorough": True})
    except UsageError as error:
        raise at_value(job, error) from error


def _record(bus: EventBus, layout: RunLayout) -> None:
    """In the run's directory, and as lines on stdout."""
    from orchestrator.metrics.run_recorder import RunRecorder

    layout.root.mkdir(parents=True, exist_ok=True)
    bus.add("the recorder", RunRecorder(layout), essential=True)
    bus.add("the printer", LinePrinter(), essential=True)


def _prepared(job: "LoadedJob", session: StandaloneSession, run_dir: Path) -> Path:
    """Directory of the prepared data: rank 0 prepares it, the others wait."""
    if session.rank != 0:
        return Path(session.lookup(PREPARED_KEY, timeout_s=24 * 3600))
    from orchestrator.data.executor import LocalExecutor
    from orchestrator.data.prepare import prepare

    cache = Path(job.spec.data.cache_dir) if job.spec.data.cache_dir else run_dir.parent / "cache"
    executor = LocalExecutor(workers=max(1, (os.cpu_count() or 1) // session.world_size))
    prepared = prepare(job.spec, job.path.parent, cache, executor, session.report_event)
    session.publish(PREPARED_KEY, str(prepared.directory))
    return prepared.directory


def _plan(
    job: "LoadedJob",
    session: StandaloneSession,
    run_dir: Path,
    data_dir: Path,
    options: argparse.Namespace,
    room: DeviceRoom | None,
    fitting: GpuFit,
) -> TrainPlan:
    from orchestrator.data.data_manifest import DataManifest
    from orchestrator.planner.model_shape import model_shape
    from orchestrator.planner.train_plan import DataFacts, PlanLimits, train_plan

    manifest = DataManifest.read(data_dir)
    facts = DataFacts(str(data_dir), manifest.train_samples, manifest.vocab_size)
    limits = PlanLimits(None, job.spec.train.global_batch, room)
    config, workers = _config(job), session.world_size
    shape = model_shape(config, facts.vocab_size)
    fitting.check(workers, room, shape)
    plan = train_plan(job.spec, str(run_dir), facts, config, workers, limits)
    fitting.tell(workers, room, shape, plan.micro_batch)
    return replace(
        plan, resume_from=str(options.resume.resolve()) if options.resume else None, export=not options.no_export
    )


if __name__ == "__main__":
    sys.exit(main())
