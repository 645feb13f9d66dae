"""The wheel: it holds what the package reads, and trains outside the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from orchestrator.clusters.ray.fork_server.fork_launch import VARIABLE

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "orchestrator"
BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE")
JOB = """\
name: tiny
model:
  architecture: gpt2
  config: {n_layer: 1, n_embd: 32, n_head: 2}
tokenizer:
  train: {vocab_size: 300}
data:
  sources: [{files: ["text.txt"], format: lines}]
  sequence_length: 32
train: {steps: 3, global_batch: 4, lr: 1e-3}
resources: {workers: 1}
"""
STEPS = 3
LINES = 2000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `pip wheel .` does, from a copy: a build leaves files in its source tree."""
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(PACKAGE, source / "orchestrator", ignore=shutil.ignore_patterns("__pycache__"))
    for name in BUILT_FROM:
        shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(source), timeout_s=120)
    return next(out.glob("convoy_train-*.whl"))


def pip(*arguments: str, timeout_s: float, python: str = sys.executable) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=clean_environment())
    assert done.returncode == 0, done.stdout + done.stderr


def clean_environment() -> dict[str, str]:
    """Without what leads to the checkout, to its fork server, or to the runs of whoever runs the tests."""
    left_out = ("PYTHONPATH", "CONVOY_HOME", VARIABLE)
    return {name: value for name, value in os.environ.items() if name not in left_out}


def environment_of(wheel: Path, directory: Path, with_dependencies_of_this: bool) -> Path:
    """The `bin` of a new virtual environment with the wheel in it.

    Its dependencies are those of this interpreter, found by path: its `.pth` files are not read then, so an editable
    install of the checkout does not count.
    """
    venv.create(directory, with_pip=False)
    python = directory / "bin" / "python"
    if with_dependencies_of_this:
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        site = directory / "lib" / version / "site-packages"
        paths = {sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]}
        (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in sorted(paths)))
        pip("install", "--no-deps", "--no-index", str(wheel), timeout_s=120, python=str(python))
    else:
        pip("install", "-c", str(ROOT / "constraints.txt"), str(wheel), timeout_s=900, python=str(python))
    return python.parent


def convoy(bin_directory: Path, work: Path, *arguments: str, timeout_s: float) -> str:
    done = subprocess.run(
        [bin_directory / "convoy", *arguments],
        cwd=work, env=clean_environment(), capture_output=True, text=True, timeout=timeout_s,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_trains(bin_directory: Path, work: Path) -> None:
    """`convoy` of that environment trains a job in `work`, which is no checkout."""
    (work / "job.yaml").write_text(JOB)
    (work / "text.txt").write_text("".join(f"line {number} says {number % 7}\n" for number in range(LINES)))
    found = "import orchestrator; print(orchestrator.__file__)"
    done = subprocess.run(
        [bin_directory / "python", "-c", found], cwd=work, env=clean_environment(), capture_output=True, text=True
    )
    assert Path(done.stdout.strip()).is_relative_to(bin_directory.parent), "the wheel's copy, not the checkout"
    convoy(bin_directory, work, "run", "job.yaml", timeout_s=240)
    run = next((work / "runs").glob("tiny-*"))
    assert (run / "steps.jsonl").read_text().count("\n") == STEPS
    assert (run / "export" / "model.safetensors").is_file()
    convoy(bin_directory, work, "monitor", "files", "--to", "monitoring", timeout_s=60)
    assert (work / "monitoring" / "prometheus" / "prometheus.yml").is_file()
    assert (work / "monitoring" / "kubernetes" / "prometheus-rule.yaml").is_file()
    assert "Proved: every sample" in (run / "report.html").read_text(), "with its style sheet and script"
    assert "PROVED" in convoy(bin_directory, work, "data", "verify", "last", timeout_s=60)


@pytest.mark.cluster
def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    ours = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*") if path.is_file()}
    ours = {name for name in ours if "__pycache__" not in name}
    monitoring = [path.relative_to(ROOT / "monitoring") for path in (ROOT / "monitoring").rglob("*") if path.is_file()]
    ours |= {f"orchestrator/monitor/assets/{path}" for path in monitoring}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = next(name.partition("/")[0] for name in names if name.endswith(".dist-info/METADATA"))
        assert {name for name in names if not name.startswith(f"{info}/")} == ours
        assert {"orchestrator/py.typed", "orchestrator/spec/checks/architectures.json"} <= ours
        metadata = archive.read(f"{info}/METADATA").decode()
        assert archive.read(f"{info}/entry_points.txt").decode().split("\n")[1] == "convoy = orchestrator.cli.main:main"
        assert f"{info}/licenses/LICENSE" in names
    assert "\nName: convoy-train\n" in metadata
    assert "\nRequires-Python: <3.14,>=3.11\n" in metadata


@pytest.mark.cluster
def test_the_wheel_trains_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    bin_directory = environment_of(wheel, tmp_path / "venv", with_dependencies_of_this=True)
    work = tmp_path / "work"
    work.mkdir()
    assert_trains(bin_directory, work)


@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_the_wheel_trains_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    bin_directory = environment_of(wheel, tmp_path / "venv", with_dependencies_of_this=False)
    work = tmp_path / "work"
    work.mkdir()
    assert_trains(bin_directory, work)
