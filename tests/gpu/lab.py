"""What all checks are given: the device, jobs for it, and ranks."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.domain.devices.device import device_environment, user_variables
from tests.gpu.jobs import Jobs
from tests.gpu.plain_ranks import Ranks

NETWORK = {"NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1", "GLOO_SOCKET_IFNAME": "lo"}


@dataclass
class Lab:
    """One machine. `gpu`: on its first GPU; else a rehearsal of the checks on CPUs, with tiny models."""

    directory: Path
    gpu: bool
    context: Any = None
    """Of multiprocessing; see `Ranks`."""

    @property
    def jobs(self) -> Jobs:
        return Jobs(self.directory, self.gpu)

    def ranks(self, count: int) -> Ranks:
        """So many processes, all on the first GPU, or on CPUs."""
        gpus = int(self.gpu)
        env = {
            "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **NETWORK,
            **user_variables(gpus, os.environ, {}), **device_environment(gpus),
        }  # fmt: skip
        return Ranks(count, env, ("0",) if self.gpu else (), self.directory, self.context)


def has_gpu() -> bool:
    """Whether torch can use a GPU here. Asked in a process of its own: this one must not touch any."""
    code = (
        "import torch, sys; sys.exit(0 if torch.cuda.is_available() and torch.ones(2, device='cuda').sum() == 2 else 1)"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, check=False).returncode == 0
