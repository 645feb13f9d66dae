"""`model.attention`, `train.compile`, `train.tf32`: what goes with the architecture, the precision and the device."""

from collections.abc import Iterator

from orchestrator.spec.checks.partial_job import View
from orchestrator.spec.spec_errors import Problem

ALL_KINDS = ("sdpa", "flash", "eager")
FEWER_KINDS: dict[str, tuple[str, ...]] = {"gpt_neo": ("flash", "eager"), "rwkv": (), "mamba": ()}
"""Of architectures that do not have all of `ALL_KINDS` in transformers. A test compares the table with the models."""


def attention_kinds(architecture: str) -> tuple[str, ...]:
    """Values of `model.attention` besides `auto` that an architecture can be built with."""
    return FEWER_KINDS.get(architecture, ALL_KINDS)


def attention_exists(view: View) -> Iterator[Problem]:
    """The architecture has that attention."""
    wanted, architecture = view.text("model.attention"), view.optional_text("model.architecture")
    if wanted == "auto" or architecture is None or wanted in attention_kinds(architecture):
        return
    kinds = attention_kinds(architecture)
    hint = f"expected {' or '.join(f'`{kind}`' for kind in kinds)}" if kinds else "remove it: it has no attention"
    message = f"`model.attention: {wanted}` does not go with `architecture: {architecture}`"
    yield view.problem("model.attention", message, hint)


def flash_needs_gpu(view: View) -> Iterator[Problem]:
    """flash-attn computes on GPUs, in 16 bits."""
    if view.get("model.attention") != "flash":
        return
    if not view.get("resources.gpus_per_worker"):
        message = "`model.attention: flash` needs a GPU, and `resources.gpus_per_worker` is 0"
        yield view.problem("model.attention", message, "set `attention: auto`")
    elif view.get("train.precision") == "fp32":
        message = "`model.attention: flash` computes in 16 bits only, and `train.precision` is `fp32`"
        yield view.problem("model.attention", message, "set `train.precision: bf16`, or `attention: auto`")


def compile_needs_whole_parameters(view: View) -> Iterator[Problem]:
    """At stage 3 every module gathers its parameters in hooks, which cannot be compiled."""
    if view.get("train.compile") == "blocks" and view.get("zero.stage") == 3:
        message = "`train.compile: blocks` does not go with `zero.stage: 3`, which gathers parameters in hooks"
        yield view.problem("train.compile", message, "set `compile: off`, or `zero.stage: 2`")


CHECKS = (attention_exists, flash_needs_gpu, compile_needs_whole_parameters)
