"""What torch, DeepSpeed and transformers find on this machine: `python -m orchestrator.train.library_facts` prints it.

Run in a process of its own: the imports take seconds, and one that crashes is a finding too.
"""

import contextlib
import json
import os
import sys

from orchestrator.domain.devices.device import (
    ACCELERATOR_VARIABLE,
    CPU,
    CUDA,
    DeviceProblem,
    decide_device,
    explain_error,
)
from orchestrator.json_values import JsonObject


def engine_facts() -> JsonObject:
    """Imports the engine. Keys: torch, threads, cuda (version, devices, why, hint), deepspeed, transformers,
    accelerator, ops.

    A library that does not import has its error under `errors` instead. `why` and `hint`: why torch can use no GPU; of
    each device, why that one cannot be used.
    """
    errors: dict[str, str] = {}
    facts: JsonObject = {"errors": errors}
    try:
        import torch
    except Exception as error:  # noqa: BLE001  # a broken installation raises whatever it likes
        errors["torch"] = f"{type(error).__name__}: {error}"
        return facts
    facts |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "gloo": torch.distributed.is_available()}
    devices, problem = _cuda_devices()
    facts["cuda"] = {"version": torch.version.cuda, "devices": devices, **_words(problem)}
    os.environ[ACCELERATOR_VARIABLE] = CUDA if devices else CPU
    try:
        import deepspeed
        from deepspeed.accelerator import get_accelerator

        facts["deepspeed"] = deepspeed.__version__
        facts["accelerator"] = get_accelerator().device_name()
        facts["ops"] = _operators()
    except Exception as error:  # noqa: BLE001
        errors["deepspeed"] = f"{type(error).__name__}: {error}"
    try:
        import transformers

        facts["transformers"] = transformers.__version__
    except Exception as error:  # noqa: BLE001
        errors["transformers"] = f"{type(error).__name__}: {error}"
    return facts


def _words(problem: DeviceProblem | None) -> dict[str, str | None]:
    return {"why": problem.why, "hint": problem.hint} if problem is not None else {"why": None, "hint": None}


def _cuda_devices() -> tuple[list[JsonObject], DeviceProblem | None]:
    """Every GPU that torch sees, each tried; or why it sees none."""
    import torch

    from orchestrator.train.engine.gpu_check import find_gpus, own_mask, try_gpu

    decided = decide_device(1, own_mask(), 0, find_gpus())
    if isinstance(decided, DeviceProblem):
        return [], decided
    found: list[JsonObject] = []
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
                **_words(explain_error(error, own_mask()) if (error := try_gpu(index)) is not None else None),
            }
        )
    return found, None


def _operators() -> dict[str, bool]:
    """Operators a job can ask for, and whether DeepSpeed could build each here (compiler, headers, libraries)."""
    from deepspeed.ops.op_builder.all_ops import ALL_OPS

    wanted = ("cpu_adam",)
    return {name: bool(ALL_OPS[name].is_compatible(verbose=False)) for name in wanted if name in ALL_OPS}


if __name__ == "__main__":
    # The libraries greet on stdout; the JSON is to be alone there.
    with contextlib.redirect_stdout(sys.stderr):
        found = engine_facts()
    print(json.dumps(found))
