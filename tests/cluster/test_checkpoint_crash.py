"""Saves that are cut short, disks that are full, bytes that rot: what is left is always a checkpoint that holds."""

import os
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoint.format import checkpoint_manifest
from orchestrator.checkpoint.format.shard import ShardWriter
from orchestrator.checkpoint.storage import checkpoint_catalog
from orchestrator.checkpoint.storage.checkpoint_catalog import list_checkpoints, newest_valid, verify_checkpoint
from orchestrator.checkpoint.storage.retention import Rule
from orchestrator.domain.errors import CheckpointError
from tests.cluster.zero_gang import (
    Gang,
    LocalSession,
    Setup,
    WorkerDied,
    build,
    restore_and_train,
    train,
    train_and_save,
)
from tests.selection import every_day
from tests.small_disk import mounted_disk

pytestmark = pytest.mark.cluster


@pytest.fixture
def gang(tmp_path: Path) -> Iterator[Gang]:
    gang = Gang(2, tmp_path)
    yield gang
    gang.close()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


def save(engine: Any, run_dir: str, step: int, keep_last: int = 5) -> None:
    from orchestrator.train.snapshot.checkpointing import SaveProgress, save_checkpoint

    save_checkpoint(engine, LocalSession(), run_dir, step, SaveProgress(step, step * 12), Rule(keep_last))  # type: ignore[arg-type]


def die_while_saving(run_dir: str, moment: str) -> None:
    """Save step 1, then kill this process with SIGKILL in the middle of saving step 2."""
    import torch.distributed as dist

    from orchestrator.train.snapshot import checkpointing

    engine = build(Setup(stage=1))
    train(engine, 0, 1)
    save(engine, run_dir, 1)
    train(engine, 1, 1)

    def die(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    if moment == "shard" and dist.get_rank() == 1:
        ShardWriter.finish = die  # type: ignore[method-assign]
    elif moment == "manifest" and dist.get_rank() == 0:
        checkpointing._manifest = die
    elif moment == "rename" and dist.get_rank() == 0:
        checkpointing.sync_path = die
    save(engine, run_dir, 2)


@pytest.mark.faults
@pytest.mark.parametrize("moment", every_day(["shard", "manifest", "rename"], "manifest"))
def test_a_worker_killed_while_saving_leaves_the_previous_checkpoint(
    gang: Gang, run_dir: Path, moment: str, tmp_path: Path
) -> None:
    answers = gang.attempt(2, die_while_saving, str(run_dir), moment)
    assert any(isinstance(answer, WorkerDied) for answer in answers)
    assert all(isinstance(answer, Exception) for answer in answers), "the other rank does not hang, nor succeed"
    checkpoints = run_dir / "checkpoints"
    assert (checkpoints / ".step-00000002.tmp").is_dir(), "it was killed in the middle"
    assert [found.step for found in list_checkpoints(checkpoints)] == [1]
    newest = newest_valid(checkpoints).path
    assert newest == checkpoints / "step-00000001"

    successors = Gang(2, tmp_path / "run")
    try:
        _, resumed, _ = successors.run(2, restore_and_train, Setup(stage=1, seed=9), str(newest), 1)[0]
        again = successors.run(2, train_and_save, Setup(stage=1), str(run_dir), 2, 0)[0]
    finally:
        successors.close()
    assert resumed == again[1:], "it goes on as if nothing had been"
    assert newest_valid(checkpoints).path == checkpoints / "step-00000002"
    assert not list(checkpoints.glob(".*")), "the remains are tidied up by the next save"


def test_a_flipped_byte_is_found_named_and_passed_over(gang: Gang, run_dir: Path) -> None:
    gang.run(2, train_and_save, Setup(stage=3), str(run_dir), 1, 0)
    gang.run(2, train_and_save, Setup(stage=3), str(run_dir), 2, 0)
    checkpoints = run_dir / "checkpoints"
    older, newer = checkpoints / "step-00000001", checkpoints / "step-00000002"
    assert newest_valid(checkpoints).path == newer
    shard = newer / "shard-00001.bin"
    with shard.open("r+b") as file:
        file.seek(shard.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(CheckpointError, match=r"shard-00001\.bin is corrupt in bytes"):
        verify_checkpoint(newer)
    rejected: list[tuple[str, str]] = []
    assert newest_valid(checkpoints, lambda place, why: rejected.append((place, why))).path == older
    assert [place for place, _ in rejected] == [str(newer)]
    assert "shard-00001.bin" in rejected[0][1]
    with pytest.raises(Exception, match=r"rank \d: shard-00001\.bin is corrupt"):
        gang.run(2, restore_and_train, Setup(stage=0), str(newer), 1)
    # Keeping one means keeping one that can be restored.
    assert checkpoint_catalog.retain(checkpoints, Rule(1)) == []
    assert newest_valid(checkpoints).path == older


def fail_to_write(run_dir: str, limit_bytes: int) -> tuple[list[float], str]:
    """Train on after a save that rank 1 had no room for, then save with room again."""
    import torch.distributed as dist

    engine = build(Setup(stage=2))
    losses = train(engine, 0, 1)
    save(engine, run_dir, 1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        save(engine, run_dir, 2)
        message = "saved"
    except CheckpointError as error:
        message = error.message
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    losses += train(engine, 1, 2)
    save(engine, run_dir, 3)
    return losses, message


def test_one_rank_that_cannot_write_fails_the_save_for_all_and_training_goes_on(gang: Gang, run_dir: Path) -> None:
    answers = gang.run(2, fail_to_write, str(run_dir), 20_000)
    undisturbed = gang.run(2, train_and_save, Setup(stage=2), str(run_dir / "other"), 0, 3)[0]
    for losses, message in answers:
        assert "checkpoint of step 2 cannot be written: rank 1: OSError" in message
        assert "File too large" in message
        assert losses == undisturbed
    checkpoints = run_dir / "checkpoints"
    assert [found.step for found in list_checkpoints(checkpoints)] == [3, 1]
    assert not list(checkpoints.glob(".*")), "nothing of the failed save is left"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted_disk(tmp_path, "600k") as disk:
        yield disk


def fill_the_disk(run_dir: str) -> list[str]:
    engine = build(Setup(stage=1))
    outcomes = []
    for step in (1, 2, 3, 4):
        train(engine, step - 1, 1)
        try:
            save(engine, run_dir, step)
            outcomes.append("saved")
        except CheckpointError as error:
            outcomes.append(error.message)
    return outcomes


@pytest.mark.needs("mounts")
def test_a_full_disk_is_an_error_and_keeps_what_was_there(gang: Gang, small_disk: Path) -> None:
    run_dir = small_disk / "run"
    run_dir.mkdir()
    outcomes = gang.run(2, fill_the_disk, str(run_dir))
    assert outcomes[0] == outcomes[1], "all ranks learn the same"
    assert outcomes[0][0] == "saved"
    assert "No space left on device" in outcomes[0][-1]
    saved = outcomes[0].count("saved")
    checkpoints = run_dir / "checkpoints"
    assert [found.step for found in list_checkpoints(checkpoints)] == list(range(saved, 0, -1))
    assert newest_valid(checkpoints).path == checkpoints / f"step-{saved:08d}"
    assert shutil.disk_usage(small_disk).free > 50_000, "the unfinished one was removed"


class RemoteSession:
    """A `Session` of a worker that does not see the driver's files: `driver` stands for the driver's disk."""

    shares_files = False

    def __init__(self, driver: Path) -> None:
        self.driver = driver

    def progress(self) -> None:
        """Nobody watches."""

    def store(self, local: Path, path: str) -> None:
        target = self.driver / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".partial")
        shutil.copyfile(local, partial)
        partial.rename(target)

    def fetch(self, path: str) -> Path:
        local = self.driver / path.lstrip("/")
        if not local.exists():
            raise FileNotFoundError(path)
        return local


def save_remotely(driver: str, step: int) -> str:
    from orchestrator.train.snapshot.checkpointing import SaveProgress, save_checkpoint

    engine = build(Setup(stage=2))
    train(engine, 0, step)
    session: Any = RemoteSession(Path(driver))
    return save_checkpoint(engine, session, "/far/away/run", step, SaveProgress(step, step * 12), Rule(2)).path


def restore_remotely(driver: str, path: str) -> list[float]:
    from orchestrator.train.snapshot.checkpointing import load_checkpoint

    engine = build(Setup(stage=3, seed=5))
    session: Any = RemoteSession(Path(driver))
    progress = load_checkpoint(engine, session, path)
    return train(engine, progress.step, 2)


def test_without_a_shared_file_system_files_are_stored_and_the_manifest_last(gang: Gang, tmp_path: Path) -> None:
    driver = tmp_path / "driver"
    path = gang.run(2, save_remotely, str(driver), 2)[0]
    assert path == "/far/away/run/checkpoints/step-00000002"
    assert not Path("/far").exists()
    there = driver / path.lstrip("/")
    verify_checkpoint(there)
    # A second attempt at the same step does not touch the files of the first until its own manifest arrives.
    first = set(there.glob("shard-*"))
    gang.run(2, save_remotely, str(driver), 2)
    assert len(set(there.glob("shard-*")) - first) == 4
    verify_checkpoint(there)
    expected = gang.run(2, train_and_save, Setup(stage=2), str(tmp_path / "run"), 2, 2)[0][2:]
    assert gang.run(2, restore_remotely, str(driver), path)[0] == pytest.approx(expected, rel=1e-5)
    (there / checkpoint_manifest.MANIFEST).unlink()
    with pytest.raises(Exception, match="was never finished: it has no manifest"):
        gang.run(2, restore_remotely, str(driver), path)


def test_another_model_is_refused_with_the_differences(gang: Gang, run_dir: Path) -> None:
    gang.run(2, train_and_save, Setup(stage=1), str(run_dir), 1, 0)
    wider = Setup(stage=1, model={"n_embd": 32})
    with pytest.raises(Exception, match=r"wte\.weight: saved \[101, 30\] \(trained\), expected \[101, 32\]"):
        gang.run(2, restore_and_train, wider, str(run_dir / "checkpoints/step-00000001"), 1)
    with pytest.raises(Exception, match=r"wpe\.weight: saved .*\(trained\), expected .*\(frozen\)"):
        gang.run(2, restore_and_train, Setup(stage=1, frozen=True), str(run_dir / "checkpoints/step-00000001"), 1)


def save_in_the_middle(run_dir: str) -> None:
    engine = build(Setup(stage=1, accumulation=2))
    engine.backward(engine(**_batch()).loss)
    engine.step()
    save(engine, run_dir, 1)


def _batch() -> dict[str, Any]:
    import torch

    tokens = torch.arange(32).reshape(2, 16)
    return {"input_ids": tokens, "labels": tokens}


def test_state_is_saved_only_between_steps(gang: Gang, run_dir: Path) -> None:
    with pytest.raises(Exception, match="only be saved between optimizer steps; 1 micro steps"):
        gang.run(2, save_in_the_middle, str(run_dir))
    assert list_checkpoints(run_dir / "checkpoints") == []
