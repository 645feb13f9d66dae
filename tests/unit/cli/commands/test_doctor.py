import importlib.metadata
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator.cli.commands import machine_checks
from orchestrator.cli.commands.doctor import cluster_checks, doctor, engine_checks, resources

pytestmark = pytest.mark.unit


def test_this_machine_is_described(tmp_path: Path) -> None:
    result = CliRunner().invoke(doctor, ["--fast", "--home", str(tmp_path / "not" / "there")])
    for name in ("python", "cores", "memory", "/dev/shm", "torch", "ray", "deepspeed", "C++ compiler", "loopback"):
        assert name in result.output
    assert not (tmp_path / "not").exists()


def test_the_same_for_programs(tmp_path: Path) -> None:
    result = CliRunner().invoke(doctor, ["--fast", "--json", "--home", str(tmp_path)])
    value = json.loads(result.output)
    statuses = {check["status"] for check in value["checks"]}
    assert statuses <= {"ok", "warning", "missing", "info"}
    assert value["ok"] == ("missing" not in statuses) == (result.exit_code == 0)


def test_what_is_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    checks = {check.name: check for check in machine_checks.build_checks()}
    assert checks["C++ compiler"].status == "warning"
    assert "apt-get install g++" in str(checks["C++ compiler"].hint)


def test_a_machine_without_a_compiler_can_train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    result = CliRunner().invoke(doctor, ["--fast", "--home", str(tmp_path)])
    assert "needed only for zero.offload_optimizer" in result.output
    assert "Not ready" not in result.output
    assert result.exit_code == 0


def test_what_training_needs_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    version = importlib.metadata.version

    def without_deepspeed(name: str) -> str:
        if name == "deepspeed":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_deepspeed)
    result = CliRunner().invoke(doctor, ["--fast", "--home", str(tmp_path)])
    assert result.exit_code == 1
    assert "Not ready: deepspeed" in result.output


def test_a_stale_lock_is_found_and_a_fresh_one_is_a_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    for name, age_s in (("old", 3600), ("new", 5)):
        lock = tmp_path / "py311_cpu" / name / "lock"
        lock.parent.mkdir(parents=True)
        lock.touch()
        os.utime(lock, (time.time() - age_s, time.time() - age_s))
    (tmp_path / "py311_cpu" / "new" / "cpu_adam.so").touch()
    checks = list(machine_checks.build_checks())
    locks = {Path(check.value.split()[0]).parent.name: check for check in checks if check.name == "lock"}
    assert locks["old"].status == "missing"
    assert f"rm {tmp_path}/py311_cpu/old/lock" in str(locks["old"].hint)
    assert locks["new"].status == "info"
    assert any(check.name == "built" and "cpu_adam" in check.value for check in checks)


@pytest.mark.parametrize(
    ("version", "specifier", "inside"),
    [
        ("2.13.0", ">=2.13,<2.14", True),
        ("2.14.1", ">=2.13,<2.14", False),
        ("2.9", ">=2.13", False),
        ("1", "", True),
    ],
)
def test_versions_are_compared_as_versions(version: str, specifier: str, inside: bool) -> None:
    assert machine_checks._in_range(version, specifier) is inside


def test_an_engine_that_does_not_import_is_missing() -> None:
    (check,) = engine_checks({"error": "exit code -11: no output"})
    assert check.status == "missing"
    (check,) = engine_checks({"errors": {"torch": "OSError: libgomp.so.1"}})
    assert (check.name, check.status) == ("torch", "missing")


def test_a_gpu_is_described() -> None:
    device = {"name": "NVIDIA H100", "memory_bytes": 80 * 2**30, "capability": "9.0", "bf16": True, "peers": [1]}
    facts = {
        "errors": {}, "torch": "2.13.0", "threads": 8, "cuda": {"version": "12.8", "devices": [device]},
        "accelerator": "cuda", "ops": {"cpu_adam": False},
    }  # fmt: skip
    checks = {check.name: check for check in engine_checks(facts)}
    assert checks["GPU 0"].value == "NVIDIA H100, 80.0 GiB, compute capability 9.0, bf16, peers 1"
    assert checks["cpu_adam"].status == "info"
    assert "gpus_per_worker: 1" in checks["GPUs"].value


def test_gpus_that_cannot_be_used_or_are_not_seen_are_told() -> None:
    device = {"name": "NVIDIA H100", "memory_bytes": 80 * 2**30, "capability": "9.0", "bf16": True, "peers": []}
    broken = {**device, "why": "the GPU has a memory error that cannot be corrected", "hint": "reset the GPU"}
    facts: dict[str, Any] = {"errors": {}, "torch": "2.13.0", "cuda": {"version": "12.8", "devices": [device, broken]}}
    checks = {check.name: check for check in engine_checks(facts, 8)}
    assert (checks["GPU 0"].status, checks["GPU 1"].status) == ("ok", "warning")
    assert checks["GPU 1"].value.endswith("cannot be used: the GPU has a memory error that cannot be corrected")
    assert checks["GPUs"].value.startswith("2 of 8 visible to this process")
    facts["cuda"] = {"version": None, "devices": [], "why": "torch there is built for CPUs only", "hint": "install it"}
    (check,) = engine_checks(facts, 2)
    expected = ("warning", "2 in this machine, none can be used: torch there is built for CPUs only", "install it")
    assert (check.status, check.value, check.hint) == expected
    (check,) = engine_checks(facts, 0)
    assert check.status == "info"


def test_a_cluster_that_is_not_there_is_told() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    (check,) = cluster_checks(f"127.0.0.1:{port}")
    assert (check.status, "refused" in check.value) == ("missing", True)
    assert check.hint


def test_resources_read_well() -> None:
    assert resources({"CPU": 4.0, "memory": 2.0**31, "rack_a": 0.5}) == "4 CPU, 2.0 GiB memory, 0.5 rack_a"
