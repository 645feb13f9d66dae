"""How the model is executed: attention kernels, TF32, deterministic kernels, and what is needed to compile blocks."""

import importlib.util
import os
import shutil

import torch

from orchestrator.domain.devices.device import CUDA
from orchestrator.domain.errors import UsageError
from orchestrator.spec.checks.check_execution import attention_kinds
from orchestrator.spec.job import JobSpec

ATTENTION_NAMES = {"sdpa": "sdpa", "flash": "flash_attention_2", "eager": "eager"}
"""transformers' names."""
COMPILERS = {"cpu": ("g++", "clang++"), CUDA: ("gcc", "clang", "cc")}
"""What inductor compiles with: its kernels on a CPU, Triton's launchers on a GPU. `CXX` and `CC` name another one."""


def check_execution(spec: JobSpec) -> None:
    """Raises UsageError if what `model.attention` and `train.compile` need is not installed in this process."""
    if spec.model.attention == "flash" and not any(map(_installed, ("flash_attn", "kernels"))):
        raise UsageError(
            "model.attention: flash needs the package flash-attn, which is not installed where workers run",
            hint="install flash-attn (or kernels) there, or set `attention: sdpa`: torch has flash kernels too",
        )
    if spec.train.compile == "off":
        return
    device = CUDA if spec.resources.gpus_per_worker else "cpu"
    if device == CUDA and not _installed("triton"):
        raise UsageError(
            "train.compile: blocks needs the package triton, which is not installed where workers run",
            hint="install a CUDA build of torch, which brings triton, or set `compile: off`",
        )
    own = os.environ.get("CC" if device == CUDA else "CXX")
    names = (own,) if own else COMPILERS[device]
    if not any(map(shutil.which, names)):
        raise UsageError(
            f"train.compile: blocks needs a compiler ({' or '.join(names)}), and the workers have none",
            hint="install gcc and g++ there, or set `compile: off`",
        )


def attention_implementation(spec: JobSpec, model_type: str) -> str | None:
    """transformers' name of the attention to build; None: its own choice, SDPA if the model has it.

    Raises UsageError if models of this type have no such attention. (For `model.architecture` the job's check says so
    before; the type of a pretrained model is known here only.)
    """
    wanted = spec.model.attention
    if wanted == "auto":
        return None
    kinds = attention_kinds(model_type)
    if wanted not in kinds:
        known = f"one of {', '.join(kinds)}, or auto" if kinds else "auto: it has no attention"
        raise UsageError(f"model.attention: {wanted} does not go with {model_type}", hint=f"expected {known}")
    return ATTENTION_NAMES[wanted]


def set_numerics(spec: JobSpec, device: str) -> None:
    """TF32 and determinism, for this process. To be called before anything is computed on a device."""
    tf32 = device == CUDA and spec.train.tf32
    # "high" is TF32 for matrix products; on CPUs it may mean bf16.
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    deterministic = spec.train.deterministic
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # setting it imports a part of torch's compiler
        torch.use_deterministic_algorithms(deterministic, warn_only=False)
    # Filling every new tensor with NaN would find reads of memory that nobody wrote; it costs a pass over memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = False


def slow_precision(spec: JobSpec, capability: tuple[int, int]) -> str | None:
    """A warning for a GPU that computes several times faster in bf16; None if there is nothing to warn about.

    `capability`: CUDA's compute capability; bf16 matrix units exist from 8.0 on.
    """
    if spec.train.precision != "fp32" or capability < (8, 0):
        return None
    slowed = "" if spec.train.tf32 else ", and TF32 is off (`train.tf32`)"
    return (
        f"the run trains in fp32{slowed}: on this GPU bf16 is several times faster and takes half the memory for "
        "activations; set `train.precision: bf16` (masters and moments stay fp32)"
    )


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
