"""What the fork server may fork, and what it leaves to a process of its own."""

import json
from dataclasses import asdict

import pytest

from orchestrator.clusters.ray.fork_server.fork_client import _has_runtime_env
from orchestrator.clusters.ray.fork_server.fork_request import ForkRequest, changed_variables, obstacle, unfit

pytestmark = pytest.mark.unit

NAMESPACES = {"ipc": 1, "mnt": 2, "net": 3, "pid": 4, "user": 5, "uts": 6}


def request(env: dict[str, str] | None = None, **namespaces: int) -> ForkRequest:
    return ForkRequest(("worker.py", "--flag"), env or {}, "/", 0o022, {**NAMESPACES, **namespaces})


def test_a_request_survives_the_way_to_the_server() -> None:
    asked = request({"A": "b", "PATH": "/bin:é"})
    assert ForkRequest.from_json(json.dumps(asdict(asked)).encode()) == asked


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"null", b'{"argv": 1}', b"\xff"])
def test_what_is_no_request_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        ForkRequest.from_json(data)


@pytest.mark.parametrize(
    ("ours", "theirs", "changed"),
    [
        ({"A": "1"}, {"A": "1"}, []),
        ({"HF_HOME": "/a"}, {"HF_HOME": "/b"}, ["HF_HOME"]),
        ({"HF_HOME": "/a"}, {}, ["HF_HOME"]),
        ({}, {"LD_PRELOAD": "x.so", "DS_ACCELERATOR": "cuda"}, ["DS_ACCELERATOR", "LD_PRELOAD"]),
        # Each worker has its own.
        ({"RAY_JOB_ID": "1", "TMPDIR": "/a"}, {"RAY_JOB_ID": "2", "TMPDIR": "/b", "CUDA_VISIBLE_DEVICES": "3"}, []),
        ({}, {"CONVOY_HOME": "/a", "AWS_REGION": "b", "PWD": "/", "_": "x"}, []),
    ],
)
def test_variables_that_a_preloaded_module_may_have_read_stand_against_a_fork(
    ours: dict[str, str], theirs: dict[str, str], changed: list[str]
) -> None:
    assert changed_variables(ours, theirs) == changed
    reason = obstacle(ours, NAMESPACES, request(theirs))
    assert (reason is None) == (not changed)
    assert all(name in (reason or "") for name in changed)


def test_many_variables_are_counted() -> None:
    reason = obstacle({}, NAMESPACES, request({f"V{index}": "" for index in range(9)}))
    assert reason == "the worker's environment has other values of V0, V1, V2 and 6 more"


def test_the_network_namespace_can_be_entered_and_others_cannot() -> None:
    assert obstacle({}, NAMESPACES, request(net=99)) is None
    for name in ("mnt", "pid", "user", "ipc", "uts"):
        assert name in (obstacle({}, NAMESPACES, request(**{name: 99})) or "")


def test_a_process_with_threads_ray_or_a_device_must_not_fork() -> None:
    assert unfit(1, ["torch", "numpy"], device_opened=False) is None
    assert "3 threads" in (unfit(3, ["torch"], device_opened=False) or "")
    assert "Ray" in (unfit(1, ["torch", "ray"], device_opened=False) or "")
    assert "GPU" in (unfit(1, ["torch"], device_opened=True) or "")


@pytest.mark.parametrize(
    ("context", "has"),
    [
        (None, False),
        ("", False),
        ({}, False),
        ({"command_prefix": [], "env_vars": {}, "py_executable": "/usr/bin/python"}, False),
        ({"py_executable": "/other/python"}, True),
        ({"env_vars": {"A": "b"}}, True),
        ({"command_prefix": ["conda", "activate"]}, True),
    ],
)
def test_a_worker_with_a_runtime_environment_is_left_to_ray(context: object, has: bool) -> None:
    stock = ["/usr/bin/python", "setup_worker.py", "worker.py", "--language=PYTHON"]
    if context is not None:
        text = context if isinstance(context, str) else json.dumps(context)
        stock.append(f"--serialized-runtime-env-context={text}")
    assert _has_runtime_env(stock) is has
