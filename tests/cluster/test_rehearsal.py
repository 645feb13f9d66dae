"""A rehearsal: everything that a first step does for the first time, and nothing left of it."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.cluster

PROGRAM = """
import os
os.environ["DS_ACCELERATOR"] = "cpu"
from orchestrator.train import rehearsal
getattr(rehearsal, "stage_{stage}")()
import sys, threading, torch.distributed as dist
assert not dist.is_initialized()
assert "deepspeed" in sys.modules
getattr(rehearsal, "stage_{other}")()
assert not dist.is_initialized()
print("rehearsed")
"""


@pytest.mark.parametrize(("stage", "other"), [(0, 3), (1, 2), (3, 0)])
def test_a_process_can_rehearse_and_then_do_something_else(stage: int, other: int) -> None:
    program = PROGRAM.format(stage=stage, other=other)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "rehearsed"
