"""A rehearsal: everything that a first step does for the first time, and nothing left of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.selection import every_day

pytestmark = pytest.mark.cluster

SEEMING_CUDA = Path(__file__).parent / "cuda_that_seems_there"
"""A process that trains on the CPU rehearses there, whatever torch says of GPUs."""

PROGRAM = """
import os
os.environ["DS_ACCELERATOR"] = "cpu"
import sys
from importlib import import_module
from orchestrator.run.launcher import ENGINE_MODULES
for module in (*ENGINE_MODULES, "transformers.models.gpt2.modeling_gpt2"):
    import_module(module)
imported = set(sys.modules)
from orchestrator.train.engine import warmup
getattr(warmup, "stage_{stage}")()
import torch.distributed as dist
assert not dist.is_initialized()
assert "deepspeed" in sys.modules
late = [name for name in sys.modules.keys() - imported if name.startswith("deepspeed")]
assert late == [], late  # the first engine finds imported what it needs
assert "torch._inductor.compile_fx" not in sys.modules  # torch's compiler: a fifth of a worker's start
getattr(warmup, "stage_{other}")()
assert not dist.is_initialized()
print("rehearsed")
"""


@pytest.mark.parametrize(("stage", "other"), every_day([(0, 3), (1, 2), (3, 0)], (3, 0)))
def test_a_process_can_rehearse_and_then_do_something_else(stage: int, other: int) -> None:
    program = PROGRAM.format(stage=stage, other=other)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SEEMING_CUDA), str(SEEMING_CUDA.parents[2])])}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "rehearsed"
