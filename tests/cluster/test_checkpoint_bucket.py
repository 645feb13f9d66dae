"""Checkpoints in a bucket, against a server that speaks S3 in a process of its own: killed, silent, and cut off."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from orchestrator.checkpoint.format.checkpoint_manifest import Manifest, ShardEntry, TensorEntry
from orchestrator.checkpoint.format.exported import export_problem
from orchestrator.checkpoint.format.intervals import Kind, Range
from orchestrator.checkpoint.format.reader import CheckpointReader
from orchestrator.checkpoint.format.shard import CHUNK_BYTES, Interval
from orchestrator.checkpoint.storage.checkpoint_catalog import list_checkpoints, newest_valid, retain, verify_checkpoint
from orchestrator.checkpoint.storage.durable import abandon, commit, write_shard
from orchestrator.checkpoint.storage.retention import Rule
from orchestrator.checkpoint.storage.storage import (
    Storage,
    StorageError,
    StorageFault,
    StorageLimits,
    open_storage,
    require_writable,
)
from orchestrator.cli.commands.checkpoint_command import checkpoint
from orchestrator.domain.errors import CheckpointError
from orchestrator.domain.events import CheckpointFailed, CheckpointRestored, CheckpointSaved, Event, RunState
from orchestrator.domain.step_report import StepReport
from orchestrator.drill.shard_damage import corrupt_newest
from orchestrator.run.launcher import resume_run, run_job
from orchestrator.spec.loading.load import load_job
from tests.cluster.gang_runs import Recording, write_job
from tests.cluster.s3_server import BUCKET, Link, S3Server, environment
from tests.cluster.zero_gang import Gang, LocalSession, Setup, build, train
from tests.small_disk import mounted_disk

pytestmark = pytest.mark.cluster
SHORT = StorageLimits(connect_s=1, request_s=3, retries=2, retry_s=4)
PLACE = f"s3://{BUCKET}/run"
ELEMENTS = 6 << 20
"""24 MiB a shard: three parts of an upload."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def link(server: S3Server) -> Iterator[Link]:
    link = Link(server.port)
    yield link
    link.close()


@pytest.fixture
def place(server: S3Server, link: Link, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A prefix of its own, reached through `link`."""
    for variable, value in environment(link.port).items():
        monkeypatch.setenv(variable, value)
    return f"s3://{BUCKET}/{request.node.name.replace('[', '-').strip(']')}"


def weights(rank: int, step: int) -> Any:
    return np.arange(ELEMENTS, dtype=np.float32) + rank * ELEMENTS + step


def shard(storage: Storage, step: int, rank: int, rate: float | None = None) -> ShardEntry:
    """`rate`: bytes a second, at most."""
    pause_s = 0.0 if rate is None else CHUNK_BYTES / rate
    content = weights(rank, step).data
    interval = Interval("w", Kind.MASTER, Range(rank * ELEMENTS, (rank + 1) * ELEMENTS), 0, "float32")
    return write_shard(storage, f"step-{step:08d}", rank, [interval], content, {}, tick=lambda: time.sleep(pause_s))


def write(storage: Storage, step: int, loss: float | None = None) -> None:
    shards = tuple(shard(storage, step, rank) for rank in range(2))
    tensors = {"w": TensorEntry((2 * ELEMENTS,), "float32", Kind.MASTER, 0)}
    manifest = Manifest(step, 0, 2, 1, "Adam", tensors, {}, False, (), shards, extra={"loss": loss})
    commit(storage, f"step-{step:08d}", manifest)


def test_a_checkpoint_goes_there_and_back(place: str, server: S3Server) -> None:
    storage = open_storage(place)
    require_writable(storage)
    assert list_checkpoints(storage) == []
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0)):
        write(storage, step, loss)
    assert [found.problem for found in list_checkpoints(storage)] == [None, None, None]
    found = newest_valid(storage)
    assert found is not None
    assert found.place == f"{place}/step-00000003"
    before = len(server.requests("GET"))
    with CheckpointReader(found.place) as reader:
        out = np.empty(2 * ELEMENTS, dtype=np.float32)
        for start in range(0, 2 * ELEMENTS, 10_000):
            end = min(start + 10_000, 2 * ELEMENTS)
            reader.read("w", Kind.MASTER, start, end, out[start:end])
    assert np.array_equal(out, np.concatenate([weights(0, 3), weights(1, 3)]))
    assert len(server.requests("GET")) - before <= 8, "a manifest, two indexes, 48 MiB in pieces of 16"
    assert retain(storage, Rule(1, keep_best=1), trusted=(3,)) == [f"{place}/step-00000001"]
    assert [found.step for found in list_checkpoints(storage)] == [3, 2]


def test_what_a_drill_damages_is_found(place: str) -> None:
    write(open_storage(place), 1)
    write(open_storage(place), 2)
    assert corrupt_newest(place)
    with pytest.raises(CheckpointError):
        verify_checkpoint(f"{place}/step-00000002")
    verify_checkpoint(f"{place}/step-00000001")


def test_what_rots_in_a_bucket_is_found_and_passed_over(place: str) -> None:
    storage = open_storage(place)
    for step in (1, 2, 3):
        write(storage, step)
    data = bytearray(storage.read("step-00000003", "shard-00001.bin"))
    data[len(data) // 2] ^= 1
    storage.put("step-00000003", "shard-00001.bin", [bytes(data)], len(data))
    storage.remove_file("step-00000002", "shard-00000.bin")
    rejected: dict[str, str] = {}
    found = newest_valid(storage, lambda where, why: rejected.update({where: why}))
    assert found is not None
    assert found.step == 1
    assert "shard-00001.bin is corrupt in bytes" in rejected[f"{place}/step-00000003"]
    assert rejected[f"{place}/step-00000002"] == "shard-00000.bin is missing"
    with pytest.raises(CheckpointError, match="is corrupt"):
        verify_checkpoint(f"{place}/step-00000003")


@pytest.mark.faults
def test_a_link_cut_in_the_middle_of_a_shard_leaves_nothing_that_looks_valid(place: str, link: Link) -> None:
    storage = open_storage(place, SHORT)
    write(storage, 1)
    link.cut_after(10 << 20)
    started = time.monotonic()
    with pytest.raises(StorageError) as caught:
        write(storage, 2)
    assert caught.value.fault is StorageFault.UNREACHABLE
    assert time.monotonic() - started < 15
    with pytest.raises(StorageError):  # no answer is no reason to take an older one, or none
        newest_valid(storage)
    link.mend()
    assert storage.sizes("step-00000002") == {}, "an object that is not complete is not there"
    found = newest_valid(storage)
    assert found is not None
    assert found.step == 1
    write(storage, 2)
    assert newest_valid(storage).step == 2  # type: ignore[union-attr]


@pytest.mark.faults
def test_a_link_cut_before_the_manifest(place: str, link: Link) -> None:
    storage = open_storage(place, SHORT)
    write(storage, 1)
    for rank in range(2):
        shard(storage, 2, rank)
    link.cut()
    with pytest.raises(StorageError):
        write(storage, 2)
    link.mend()
    assert [(found.step, found.problem is None) for found in list_checkpoints(storage)] == [(2, False), (1, True)]
    assert newest_valid(storage).step == 1  # type: ignore[union-attr]
    write(storage, 3)
    assert retain(storage, Rule(2), trusted=(3,)) == [f"{place}/step-00000002"], "the remains go"


@pytest.mark.faults
def test_a_server_killed_in_the_middle_of_a_shard_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = S3Server(tmp_path)
    server.start()
    try:
        for variable, value in environment(server.port).items():
            monkeypatch.setenv(variable, value)
        storage = open_storage(PLACE, SHORT)
        killer = threading.Timer(1.0, server.kill)
        killer.start()
        started = time.monotonic()
        with pytest.raises(StorageError) as caught:
            shard(storage, 1, 0, rate=8 << 20)
        killer.join()
        assert caught.value.fault is StorageFault.UNREACHABLE
        assert time.monotonic() - started < 20
        abandon(storage, "step-00000001", 0)  # does what can be done, and does not raise
        server.start()
        assert newest_valid(storage) is None
        write(storage, 1)
        assert newest_valid(storage).step == 1  # type: ignore[union-attr]
    finally:
        server.kill()


@pytest.mark.faults
def test_a_server_that_is_silent_costs_a_bounded_time(place: str, server: S3Server) -> None:
    storage = open_storage(place, SHORT)
    write(storage, 1)
    server.pause()
    try:
        for call in (storage.names, lambda: write(storage, 2), lambda: verify_checkpoint("step-00000001", storage)):
            started = time.monotonic()
            with pytest.raises(StorageError) as caught:
                call()
            assert caught.value.fault is StorageFault.UNREACHABLE
            assert time.monotonic() - started < 12
    finally:
        server.go_on()
    assert newest_valid(storage).step == 1  # type: ignore[union-attr]


WRITER = """
import numpy as np
from orchestrator.checkpoint.storage.storage import open_storage
from tests.cluster.test_checkpoint_bucket import shard
import sys
print("writing", flush=True)
shard(open_storage(sys.argv[1]), 1, 0, rate=6 << 20)
"""


@pytest.mark.faults
def test_a_writer_killed_in_the_middle_leaves_no_object(place: str) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, place], stdout=subprocess.PIPE, env=dict(os.environ))
    assert writer.stdout is not None
    try:
        assert writer.stdout.readline() == b"writing\n"
        time.sleep(2.0)
        assert writer.poll() is None
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    storage = open_storage(place)
    assert storage.sizes("step-00000001") == {}
    assert newest_valid(storage) is None


def test_a_bucket_that_is_not_there(place: str) -> None:
    for call in (require_writable, lambda storage: storage.names()):
        with pytest.raises(StorageError) as caught:
            call(open_storage("s3://no-such-bucket/run", SHORT))
        assert caught.value.fault is StorageFault.MISSING
        assert "create the bucket" in str(caught.value.hint)


# Engines --------------------------------------------------------------------------------------------------------


def save_and_train(env: dict[str, str], where: str, limits: StorageLimits, before: int, after: int) -> Any:
    """Losses of `before` steps, what the save said, and `after` steps more."""
    from orchestrator.train.snapshot.checkpointing import SaveProgress, save_checkpoint

    os.environ.update(env)
    engine = build(Setup(stage=2))
    losses = train(engine, 0, before)
    session: Any = LocalSession()
    said: Any = None
    progress = SaveProgress(before, before * 12)
    try:
        said = save_checkpoint(engine, session, "/none", before, progress, Rule(2), open_storage(where, limits)).path
    except StorageError as error:
        said = (error.fault, error.message)
    return losses + train(engine, before, after), said


def restore_and_train(env: dict[str, str], where: str, steps: int) -> list[float]:
    from orchestrator.train.snapshot.checkpointing import load_checkpoint

    os.environ.update(env)
    engine = build(Setup(stage=3, seed=5))
    session: Any = LocalSession()
    progress = load_checkpoint(engine, session, where)
    return train(engine, progress.step, steps)


@pytest.fixture
def gang(tmp_path: Path) -> Iterator[Gang]:
    gang = Gang(3, tmp_path)
    yield gang
    gang.close()


def test_an_engine_is_saved_to_a_bucket_and_restored_at_another_world_size(gang: Gang, place: str, link: Link) -> None:
    env = environment(link.port)
    losses, where = gang.run(2, save_and_train, env, place, SHORT, 2, 2)[0]
    assert where == f"{place}/step-00000002"
    verify_checkpoint(where)
    assert gang.run(3, restore_and_train, env, where, 2)[0] == pytest.approx(losses[2:], rel=1e-5)


@pytest.mark.faults
def test_an_engine_goes_on_after_a_save_that_no_bucket_took(gang: Gang, place: str, link: Link) -> None:
    env = environment(link.port)
    undisturbed, _ = gang.run(2, save_and_train, env, place, SHORT, 2, 2)[0]
    link.cut()
    answers = gang.run(2, save_and_train, env, f"{place}/other", SHORT, 2, 2)
    for losses, (fault, message) in answers:
        assert losses == undisturbed, "the engine is as if nothing had been"
        assert fault is StorageFault.UNREACHABLE
        assert "checkpoint of step 2 cannot be written: rank 0: " in message


# Runs -----------------------------------------------------------------------------------------------------------


class Cutting(Recording):
    """Cuts the link after a step, and mends it after another."""

    def __init__(self, link: Link, cut_at: int, mend_at: int) -> None:
        super().__init__()
        self._link, self._cut_at, self._mend_at = link, cut_at, mend_at

    def on_step(self, report: StepReport) -> None:
        super().on_step(report)
        if report.step == self._cut_at:
            self._link.cut()
        elif report.step == self._mend_at:
            self._link.mend()


@pytest.mark.faults
@pytest.mark.usefixtures("temporary_directory")
def test_a_run_outlives_its_bucket_and_is_resumed_from_it(tmp_path: Path, place: str, link: Link) -> None:
    changes: dict[str, Any] = {
        "train": {"steps": 9, "global_batch": 4, "lr": 1e-3},
        "checkpoint": {"interval_steps": 3, "keep_last": 3, "storage": place, "memory": False},
    }
    job, seen = load_job(write_job(tmp_path, **changes)), Cutting(link, 4, 6)
    outcome = run_job(job, tmp_path / "runs", [seen], threading.Event())
    assert (outcome.state, outcome.reason) == (RunState.SUCCEEDED, None)
    failed = seen.of(CheckpointFailed)
    assert [(fields["step"], fields["fault"]) for fields in failed] == [(6, "unreachable")]
    assert failed[0]["place"] == f"{place}/{outcome.run_id}"
    assert not (outcome.run_dir / "checkpoints").exists()
    assert (outcome.run_dir / "export" / "model.safetensors").is_file(), "exports are made from the bucket"

    storage = open_storage(f"{place}/{outcome.run_id}")
    assert [found.step for found in list_checkpoints(storage)] == [9, 3]
    listed = CliRunner().invoke(checkpoint, ["verify", outcome.run_id, "--home", str(tmp_path / "runs")])
    assert (listed.exit_code, listed.output.count("complete")) == (0, 2), listed.output
    pruned = CliRunner().invoke(
        checkpoint, ["prune", outcome.run_id, "--keep-last", "1", "--home", str(tmp_path / "runs")]
    )
    assert pruned.output == f"removed {place}/{outcome.run_id}/step-00000003\n"

    spec = outcome.run_dir / "spec.yaml"
    spec.write_text(spec.read_text().replace("steps: 9", "steps: 11"))
    state = outcome.run_dir / "run.json"
    state.write_text(state.read_text().replace("succeeded", "stopped"))
    again = Recording()
    resumed = resume_run(outcome.run_dir, tmp_path / "runs", [again], threading.Event())
    assert (resumed.state, resumed.step) == (RunState.SUCCEEDED, 11)
    restored = again.of(CheckpointRestored)
    assert [fields["path"] for fields in restored] == [f"{place}/{outcome.run_id}/step-00000009"]
    assert [report.step for report in again.steps] == [10, 11]


class RoomAtLast(Recording):
    """Makes room on a full disk once the last step could not be saved there."""

    def __init__(self, disk: Path) -> None:
        super().__init__()
        self.disk = disk
        self.left: list[Path] | None = None
        """What was there when the last step had failed."""

    def on_event(self, event: Event) -> None:
        super().on_event(event)
        if isinstance(event.body, CheckpointFailed) and event.body.step == 3 and self.left is None:
            self.left = list(self.disk.glob("*/*/*"))
            subprocess.run(["mount", "-o", "remount,size=64m", str(self.disk)], check=True)


@pytest.mark.needs("mounts")
@pytest.mark.faults
@pytest.mark.usefixtures("temporary_directory")
def test_a_run_outlives_its_full_disk_and_says_what_it_could_not_do(tmp_path: Path) -> None:
    with mounted_disk(tmp_path, "64k") as disk:
        changes = {"checkpoint": {"interval_steps": 2, "storage": str(disk), "memory": False}}
        seen = RoomAtLast(disk)
        job = load_job(write_job(tmp_path, **changes))
        outcome = run_job(job, tmp_path / "runs", [seen], threading.Event())
        assert (outcome.state, outcome.step) == (RunState.SUCCEEDED, 3)
        failed = seen.of(CheckpointFailed)
        assert [(fields["step"], fields["fault"]) for fields in failed] == [(2, "full"), (3, "full")]
        assert "No space left on device" in failed[0]["reason"]
        assert seen.left == [], "nothing of what failed takes up room"
        # The last step is saved at the next attempt: an export is made from it.
        assert [fields["step"] for fields in seen.of(CheckpointSaved)] == [3]
        assert export_problem(outcome.run_dir / "export", 3) is None
