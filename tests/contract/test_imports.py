"""What the command line may load: `convoy --help` and `convoy validate` start in an instant."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.contract

HEAVY = ("torch", "deepspeed", "ray", "transformers", "datasets", "numpy", "pyarrow", "tokenizers")


def loaded_of(packages: tuple[str, ...], module: str) -> str:
    """Those of the packages that importing a module loads, as Python prints a list."""
    code = f"import sys, {module}; print(sorted(set({packages!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "module",
    [
        "orchestrator.cli.main",
        "orchestrator.cli.commands.validate_command",
        "orchestrator.spec.loading.load",
        "orchestrator.weights.pretrained_location",
    ],
)
def test_fast_paths_load_nothing_heavy(module: str) -> None:
    assert loaded_of(HEAVY, module) == "[]"


@pytest.mark.parametrize(
    "module",
    [
        "orchestrator.run.launcher",
        "orchestrator.cli.commands.run_command",
        "orchestrator.data.prepare",
        "orchestrator.gang.group.worker_group",
    ],
)
def test_the_driver_does_not_load_torch(module: str) -> None:
    assert loaded_of(("torch",), module) == "[]"


SERVER = ("fastapi", "starlette", "uvicorn", "sse_starlette", "rich")


@pytest.mark.parametrize(
    "module",
    [
        "orchestrator.client.convoy_client",
        "orchestrator.client.job_submission",
        "orchestrator.cli.commands.queue.submit_command",
        "orchestrator.cli.commands.queue.queue_commands",
        "orchestrator.cli.commands.queue.run_control",
        "orchestrator.cli.commands.queue.access_commands",
        "orchestrator.cli.commands.server_command",
    ],
)
def test_a_laptop_needs_neither_the_server_nor_ray(module: str) -> None:
    assert loaded_of(HEAVY + SERVER, module) == "[]"
