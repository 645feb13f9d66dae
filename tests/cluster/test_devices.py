"""The spec decides what is trained on, in real processes: on a machine that seems to have a GPU, and on one without."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from orchestrator.clusters.ray.local.local_cluster import LocalCluster
from orchestrator.domain.events import ClusterReady, DataProgress
from orchestrator.gang.agent.worker_actor import worker_environment
from orchestrator.run.launcher import run_job
from orchestrator.spec.loading.load import load_job
from tests.cluster.gang_runs import Recording, write_job

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("temporary_directory")]

ROOT = Path(__file__).resolve().parents[2]
SEEMING_CUDA = Path(__file__).parent / "cuda_that_seems_there"
NO_SUCH_GPU = "GPU-00000000-0000-0000-0000-000000000000"


def train_alone(job: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Train without Ray, where torch says that there is a GPU and the environment asks DeepSpeed to use it."""
    env = {
        **os.environ,
        "PYTHONPATH": f"{SEEMING_CUDA}{os.pathsep}{ROOT}",
        "DS_ACCELERATOR": "cuda",
        "CUDA_VISIBLE_DEVICES": "0",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "orchestrator.train.standalone", str(job), "--run-dir", str(job.parent / "run")]
    return subprocess.run(
        [*command, *arguments], env=env, cwd=job.parent, capture_output=True, text=True, timeout=240, check=False
    )


def test_a_cpu_job_stays_on_the_cpu_where_there_is_a_gpu(tmp_path: Path) -> None:
    """From tokens to the sample at the end; the state that is saved too."""
    job = write_job(tmp_path, generate={"prompt": "line", "max_new_tokens": 2})
    done = train_alone(job, "--set", "train.steps=2")
    assert done.returncode == 0, done.stderr[-3000:]
    started = next(line for line in done.stdout.splitlines() if line.startswith("worker.started"))
    assert "device=cpu" in started.split()
    assert "step 2: loss" in done.stdout
    assert "sample: prompt=line" in done.stdout


@pytest.mark.skipif(torch.version.cuda is not None or torch.version.hip is not None, reason="torch can use GPUs")
def test_a_gpu_that_only_seems_to_be_there_is_refused_before_data_is_prepared(tmp_path: Path) -> None:
    done = train_alone(write_job(tmp_path), "--set", "resources.gpus_per_worker=1")
    assert done.returncode == 2, done.stdout + done.stderr[-3000:]
    assert "error: rank 0 on " in done.stderr
    assert "is built for CPUs only" in done.stderr
    assert "hint: install a CUDA or ROCm build of torch" in done.stderr
    assert not (tmp_path / "cache").exists()


def test_a_promised_gpu_that_does_not_work_ends_the_run_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mask names a GPU that is not there: the local cluster believes it and places the worker."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", NO_SUCH_GPU)
    seen = Recording()
    job = load_job(write_job(tmp_path, resources={"workers": 1, "gpus_per_worker": 1}, cluster={"nodes": 1}))
    outcome = run_job(job, tmp_path / "runs", [seen], threading.Event())
    assert outcome.exit_code == 2, outcome.reason
    assert outcome.reason is not None
    assert "resources.gpus_per_worker is 1, but the worker cannot use a GPU: on " in outcome.reason
    assert "127.0.0.1, process " in outcome.reason
    assert "\nhint: " in outcome.reason
    assert seen.of(ClusterReady)[0]["gpus"] == 1
    assert not seen.of(DataProgress)
    assert not (tmp_path / "runs" / "cache").exists()


def test_workers_see_the_gpus_of_the_mask_that_ray_gave_them_or_none() -> None:
    """Also where the nodes' environment shows all of theirs, and tells Ray to leave it alone."""
    import ray

    from orchestrator.gang.group.worker_group import _actor_class

    env = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1", "DS_ACCELERATOR": "cuda"}
    cluster = LocalCluster(1, {"CPU": 2.0, "memory": 2e9}, gpus=("GPU-a", "MIG-b"), env=env).start()
    try:
        actors = [
            _actor_class().options(num_cpus=0, num_gpus=gpus).remote(worker_environment(1, gpus, {}), True, True)
            for gpus in (0, 1, 1)
        ]
        answers = ray.get([actor.check_device.remote("tests.cluster.entries:own_masks") for actor in actors])
        on_cpu, *on_gpu = [json.loads(answer.why) for answer in answers]
        assert on_cpu == {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "-1"}
        assert sorted(each["CUDA_VISIBLE_DEVICES"] for each in on_gpu) == ["GPU-a", "MIG-b"]
        assert [each["DS_ACCELERATOR"] for each in on_gpu] == ["cuda", "cuda"]
    finally:
        cluster.close()
