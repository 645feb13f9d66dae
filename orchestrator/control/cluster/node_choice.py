"""What a server's own cluster offers: the processors, memory and GPUs of this machine, dealt out to its nodes."""

import os
from collections.abc import Callable, Mapping

import psutil

from orchestrator.clusters.ray.gpus import gpus_for
from orchestrator.clusters.ray.local.keeper_files import KeptNodes
from orchestrator.run.launcher import ENGINE_MODULES

MODELS = ("transformers", "transformers.models.gpt2.modeling_gpt2", "transformers.models.llama.modeling_llama")
"""Imported ahead beside the engine: what most jobs train."""
ON_ANY_DEVICE = ("torch", "torch.distributed")
"""What a worker may import before it is known whether it trains on a GPU: DeepSpeed decides when it is imported."""
KEPT_BACK = 0.1
"""Share of the free memory that is not offered: for the server, its drivers and Ray."""


def machine_nodes(
    nodes: int = 1,
    cpus_per_node: float | None = None,
    gpus: bool = True,
    environ: Mapping[str, str] | None = None,
    warn: Callable[[str], None] = lambda _: None,
) -> KeptNodes:
    """`nodes` that share this machine evenly. `cpus_per_node`: None for an even share of the processors that this
    process may use, 1 at least. `gpus`: offer those that `environ` does not hide (default: this process's)."""
    cpus = cpus_per_node if cpus_per_node is not None else max(1, len(os.sched_getaffinity(0)) // nodes)
    memory_bytes = int(psutil.virtual_memory().available * (1 - KEPT_BACK)) // nodes
    found = gpus_for(1, os.environ if environ is None else environ, warn) if gpus else ()
    modules = ENGINE_MODULES if not found else ON_ANY_DEVICE
    return KeptNodes(nodes, {"CPU": float(cpus), "memory": float(memory_bytes)}, found, (*modules, *MODELS))
