"""What the command line may load: `convoy --help` and `convoy validate` start in an instant."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.contract

HEAVY = ("torch", "deepspeed", "ray", "transformers", "datasets", "numpy", "pyarrow", "tokenizers")


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
    code = f"import sys, {module}; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


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
    code = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"
