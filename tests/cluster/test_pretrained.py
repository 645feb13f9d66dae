"""Pretrained models through the product: what is wrong with one ends the job before any data is tokenised."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.events import ClusterReady, DataProgress, RunState
from orchestrator.run.launcher import run_job
from orchestrator.spec.loading.load import load_job
from orchestrator.spec.spec_errors import SpecError
from tests.cluster.gang_runs import Recording, all_pids, ray_processes, write_job
from tests.cluster.hub_server import serve
from tests.unit.train.bases import FILE, as_torch_file, rewrite, set_config, write_base
from tests.unit.weights.written import LFS_POINTER

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("temporary_directory")]


def write_pretrained_job(directory: Path) -> Path:
    """A job with the model `base` and its tokenizer beside it."""
    from orchestrator.data.tokens import tokenizer
    from orchestrator.spec.model import TokenizerTrainSpec

    trained = tokenizer.train(["the quick brown fox jumps " * 50], TokenizerTrainSpec(vocab_size=300))
    write_base(directory / "base")
    trained.save(directory / "base")
    changes: dict[str, Any] = {"model": {"pretrained": "base"}, "tokenizer": {}}
    return write_job(directory, **changes, resources={"workers": 1}, cluster={"nodes": 1})


def test_a_missing_layer_ends_the_run_before_data_is_tokenised(tmp_path: Path) -> None:
    """A worker finds it out: only there is the model known."""
    job, pids, seen = write_pretrained_job(tmp_path), all_pids(), Recording()
    rewrite(tmp_path / "base", lambda tensors: {name: t for name, t in tensors.items() if "layers.1." not in name})
    outcome = run_job(load_job(job), tmp_path / "runs", [seen], threading.Event())
    assert (outcome.state, outcome.exit_code) == (RunState.FAILED, 2)
    reason = outcome.reason or ""
    line = next(n for n, text in enumerate(job.read_text().splitlines(), start=1) if "pretrained: base" in text)
    assert reason.startswith(f"{job}:{line}:15: `model.pretrained`: the weights in {tmp_path / 'base'}")
    assert "missing: model.layers.1.self_attn.q_proj.weight" in reason
    assert "\n  hint: " in reason
    assert seen.of(ClusterReady)
    assert seen.of(DataProgress) == []
    assert not (tmp_path / "runs" / "cache").exists()
    assert ray_processes(pids) == []


def test_what_files_alone_tell_comes_before_a_run_and_a_cluster(tmp_path: Path) -> None:
    job, seen = write_pretrained_job(tmp_path), Recording()
    (tmp_path / "base" / FILE).write_bytes(LFS_POINTER)
    with pytest.raises(SpecError, match="git-LFS pointer"):
        run_job(load_job(job), tmp_path / "runs", [seen], threading.Event())
    assert seen.events == []
    assert not (tmp_path / "runs").exists()


ASK = """
import json, sys
from pathlib import Path
from orchestrator.domain.errors import UsageError
from orchestrator.train.models.base_check import check_base
from orchestrator.train.models.architectures import build_model
from tests.unit.train.bases import base_spec
from tests.unit.train.builders import manifest_with

def said(act):
    try:
        return act()
    except UsageError as error:
        return error.message

def ask(repository):
    spec = base_spec(Path(repository))
    check = said(lambda: check_base({"spec": spec.model_dump(mode="json"), "thorough": True}))
    return [check, said(lambda: build_model(spec, manifest_with()).lm_head.weight.sum().item())]

print(json.dumps({name: ask("someone/" + name) for name in sys.argv[1:]}))
"""


def ask(directory: Path, endpoint: str, *repositories: str) -> dict[str, Any]:
    """What check and loading say of hub repositories, in a process of its own: the endpoint is read when imported."""
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(directory / "hf"), "NO_PROXY": "127.0.0.1"}
    env |= {"PYTHONPATH": str(Path(__file__).parents[2])}
    env.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", ASK, *repositories]
    done = subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return value


def test_models_of_the_hub(tmp_path: Path) -> None:
    """Judged by their headers before they are downloaded; from the cache when there is no hub."""
    models = tmp_path / "hub" / "models" / "someone"
    saved = write_base(models / "good")
    saved.save_pretrained(models / "sharded", max_shard_size="2KB")
    for name in ("thin", "bare", "deep", "bin"):
        shutil.copytree(models / "good", models / name)
    rewrite(models / "thin", lambda tensors: {name: t for name, t in tensors.items() if "lm_head" not in name})
    (models / "bare" / FILE).unlink()
    set_config(models / "deep", num_hidden_layers=3)
    as_torch_file(models / "bin")
    head = pytest.approx(saved.lm_head.weight.sum().item())
    with serve(tmp_path / "hub") as endpoint:
        said = ask(tmp_path, endpoint, "good", "sharded", "bin", "thin", "bare", "deep")
    assert [said["good"], said["sharded"], said["bin"]] == [[None, head]] * 3
    assert all("missing: lm_head.weight" in answer for answer in said["thin"])
    assert all("has no weights" in answer for answer in said["bare"])
    assert all("missing: model.layers.2." in answer for answer in said["deep"])
    said = ask(tmp_path, "http://127.0.0.1:9", "good", "thin", "unknown")
    assert said["good"] == [None, head]
    assert all("missing: lm_head.weight" in answer for answer in said["thin"])
    assert all("cannot be reached" in answer for answer in said["unknown"])
