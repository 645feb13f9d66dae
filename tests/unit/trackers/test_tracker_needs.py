"""A tracker that cannot work is an error before the run begins, at its place in the job file."""

import importlib.util
from pathlib import Path

import pytest
import yaml

from orchestrator.spec.loading.load import load_job
from orchestrator.spec.spec_errors import SpecError
from orchestrator.trackers.tracker_needs import check_trackers, missing, wanted_trackers
from tests.cluster.gang_runs import write_job

pytestmark = pytest.mark.unit


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of packages that seem to be installed."""
    names: set[str] = set()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in names else None)
    return names


def check(directory: Path, env: dict[str, str], **logging: object) -> list[str]:
    job = load_job(write_job(directory, logging=logging))
    try:
        check_trackers(job, {"HOME": str(directory), **env})
    except SpecError as error:
        return [f"{problem.place.line}: {problem.message} / {problem.hint}" for problem in error.problems]
    return []


def test_a_package_that_is_not_installed(tmp_path: Path, installed: set[str]) -> None:
    problems = check(tmp_path, {}, tensorboard={}, wandb={"project": "p"})
    lines = (tmp_path / "gang.yaml").read_text().splitlines()
    assert [lines[int(text.partition(":")[0]) - 1].strip() for text in problems] == ["tensorboard: {}", "project: p"]
    assert "`logging.tensorboard`: the package tensorboard is not installed" in problems[0]
    assert "pip install 'convoy-train[wandb]'" in problems[1]
    installed.add("tensorboard")
    assert check(tmp_path, {}, tensorboard={}) == []


def test_without_trackers_nothing_is_needed(tmp_path: Path, installed: set[str]) -> None:
    assert check(tmp_path, {}) == []
    assert check(tmp_path, {}, wandb={"mode": "disabled"}) == []
    assert check(tmp_path, {"WANDB_MODE": "disabled"}, wandb={}) == []


def test_a_key_is_needed_to_upload_alone(tmp_path: Path, installed: set[str]) -> None:
    installed.add("wandb")
    (problem,) = check(tmp_path, {}, wandb={})
    assert "there is no API key for Weights & Biases" in problem
    assert "export WANDB_API_KEY" in problem
    assert check(tmp_path, {"WANDB_API_KEY": "k"}, wandb={}) == []
    assert check(tmp_path, {}, wandb={"mode": "offline"}) == []
    assert check(tmp_path, {"WANDB_MODE": "offline"}, wandb={}) == []
    assert check(tmp_path, {"WANDB_MODE": "offline"}, wandb={"mode": "online"}) != [], "the job decides"


def test_a_key_of_wandb_login_counts_for_its_host(tmp_path: Path, installed: set[str]) -> None:
    installed.add("wandb")
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine api.wandb.ai login user password secret\n")
    netrc.chmod(0o600)
    assert check(tmp_path, {}, wandb={}) == []
    assert check(tmp_path, {"WANDB_BASE_URL": "https://wandb.example.com"}, wandb={}) != []
    netrc.write_text("not a netrc {{{\n")
    assert check(tmp_path, {}, wandb={}) != []


def test_the_spec_of_a_run_has_no_key(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as raised:
        load_job(write_job(tmp_path, logging={"wandb": {"api_key": "0123456789"}}))
    (problem,) = raised.value.problems
    assert "export WANDB_API_KEY" in str(problem.hint)
    assert "0123456789" not in str(raised.value)


def test_which_trackers_are_wanted(tmp_path: Path) -> None:
    path = write_job(tmp_path, logging={"wandb": {}, "tensorboard": {"dir": "tb"}})
    assert yaml.safe_load(path.read_text())["logging"]
    spec = load_job(path).spec
    assert wanted_trackers(spec, {}) == ["tensorboard", "wandb"]
    assert set(missing(spec, {"WANDB_MODE": "offline"})) <= {"tensorboard", "wandb"}
