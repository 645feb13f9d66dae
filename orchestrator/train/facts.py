"""What torch, DeepSpeed and transformers find on this machine: `python -m orchestrator.train.facts` prints JSON.

Run in a process of its own: the imports take seconds, and one that crashes is a finding too.
"""

import contextlib
import json
import os
import sys
from typing import Any


def engine_facts() -> dict[str, Any]:
    """Imports the engine. Keys: torch, threads, cuda (version, devices), deepspeed, transformers, accelerator, ops.

    A library that does not import has its error under `errors` instead.
    """
    facts: dict[str, Any] = {"errors": {}}
    try:
        import torch
    except Exception as error:  # noqa: BLE001  # a broken installation raises whatever it likes
        facts["errors"]["torch"] = f"{type(error).__name__}: {error}"
        return facts
    facts |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "gloo": torch.distributed.is_available()}
    facts["cuda"] = {"version": torch.version.cuda, "devices": _cuda_devices()}
    if not facts["cuda"]["devices"]:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
        from deepspeed.accelerator import get_accelerator

        facts["deepspeed"] = deepspeed.__version__
        facts["accelerator"] = get_accelerator().device_name()
        facts["ops"] = _operators()
    except Exception as error:  # noqa: BLE001
        facts["errors"]["deepspeed"] = f"{type(error).__name__}: {error}"
    try:
        import transformers

        facts["transformers"] = transformers.__version__
    except Exception as error:  # noqa: BLE001
        facts["errors"]["transformers"] = f"{type(error).__name__}: {error}"
    return facts


def _cuda_devices() -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        peers = [
            other
            for other in range(torch.cuda.device_count())
            if other != index and torch.cuda.can_device_access_peer(index, other)
        ]
        found.append(
            {
                "name": properties.name,
                "memory_bytes": properties.total_memory,
                "capability": f"{properties.major}.{properties.minor}",
                "bf16": torch.cuda.is_bf16_supported(),
                "peers": peers,
            }
        )
    return found


def _operators() -> dict[str, bool]:
    """Operators a job can ask for, and whether DeepSpeed could build each here (compiler, headers, libraries)."""
    from deepspeed.ops.op_builder.all_ops import ALL_OPS

    wanted = ("deepspeed_shm_comm", "cpu_adam", "fused_adam", "async_io")
    return {name: bool(ALL_OPS[name].is_compatible(verbose=False)) for name in wanted if name in ALL_OPS}


if __name__ == "__main__":
    # The libraries greet on stdout; the JSON is to be alone there.
    with contextlib.redirect_stdout(sys.stderr):
        found = engine_facts()
    print(json.dumps(found))
