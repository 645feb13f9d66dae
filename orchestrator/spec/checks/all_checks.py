"""Fields that contradict each other. Each check is one rule over the view; all that can be judged are applied."""

import itertools
from collections.abc import Callable, Iterator

from orchestrator.spec.checks import (
    check_data,
    check_execution,
    check_model,
    check_recovery,
    check_resources,
    check_schedule,
)
from orchestrator.spec.checks.check_deepspeed import deepspeed_passthrough
from orchestrator.spec.checks.partial_job import Unavailable, View
from orchestrator.spec.loading.hints import listing
from orchestrator.spec.loading.yaml_source import MAX_PROBLEMS
from orchestrator.spec.spec_errors import Problem
from orchestrator.spec.train import steps_for_tokens

Check = Callable[[View], Iterator[Problem]]


def one_length(view: View) -> Iterator[Problem]:
    """Exactly one of steps, tokens and epochs."""
    names = [name for name in ("steps", "tokens", "epochs") if view.given(f"train.{name}")]
    if len(names) > 1:
        message = f"`train` has {listing(names)}, expected exactly one of `steps`, `tokens` and `epochs`"
        yield view.problem(f"train.{names[1]}", message, "remove all but one", key=True)
    elif not names and isinstance(view.section("train"), dict):
        message = "`train` does not say how long to train, expected one of `steps`, `tokens` and `epochs`"
        yield view.problem("train", message, "for example `steps: 1000`", key=True)


def total_steps(view: View) -> int | None:
    """Steps of the whole training if the spec alone determines them, else None."""
    steps, tokens = view.optional_integer("train.steps"), view.optional_integer("train.tokens")
    if steps is not None:
        return steps
    if tokens is None:
        return None
    return steps_for_tokens(tokens, view.integer("train.global_batch"), view.integer("data.sequence_length"))


def warmup_fits(view: View) -> Iterator[Problem]:
    """The warm-up ends before training does."""
    steps, warmup = total_steps(view), view.integer("train.warmup_steps")
    if steps is not None and warmup > steps:
        where = f"`train.steps` ({steps})" if view.given("train.steps") else f"the {steps} steps of `train.tokens`"
        hint = f"for example `warmup_steps: {max(1, steps // 10)}`"
        yield view.problem("train.warmup_steps", f"`train.warmup_steps` is {warmup}, more than {where}", hint)


def evaluation_has_data(view: View) -> Iterator[Problem]:
    """An evaluation interval needs something to evaluate on."""
    if view.given("train.eval_interval_steps") and view.get("data.validation") is None:
        message = "`train.eval_interval_steps` is given, but nothing is held back for validation"
        hint = "add `data.validation: {fraction: 0.01}`, or remove it"
        yield view.problem("train.eval_interval_steps", message, hint, key=True)


def constant_schedule(view: View) -> Iterator[Problem]:
    """A constant learning rate has no minimum."""
    if view.get("train.schedule") == "constant" and view.changed("train.min_lr_ratio"):
        message = "`train.min_lr_ratio` does not go with `schedule: constant`, which never falls"
        yield view.problem("train.min_lr_ratio", message, "remove it, or choose `cosine` or `linear`", key=True)


def fp16_needs_gpu(view: View) -> Iterator[Problem]:
    """fp16 has no CPU kernels in DeepSpeed."""
    if view.get("train.precision") == "fp16" and view.integer("resources.gpus_per_worker") < 1:
        hint = "set `resources.gpus_per_worker: 1`, or `precision: bf16`, which runs on CPUs too"
        yield view.problem("train.precision", "`train.precision: fp16` needs a GPU, the workers have none", hint)


def offload_stages(view: View) -> Iterator[Problem]:
    """Only what is sharded can be offloaded."""
    stage = view.integer("zero.stage")
    for part, least in (("offload_optimizer", 1), ("offload_params", 3)):
        device = view.get(f"zero.{part}.device")
        if device != "none" and stage < least:
            what = f"`zero.{part}.device: {device}`"
            message = f"{what} needs stage {least}{' or more' if least < 3 else ''}, `zero.stage` is {stage}"
            yield view.problem(f"zero.{part}.device", message, f"set `zero.stage: {least}`, or remove `{part}`")


CHECKS: tuple[Check, ...] = (
    *check_model.CHECKS,
    *check_data.CHECKS,
    *check_execution.CHECKS,
    one_length,
    warmup_fits,
    evaluation_has_data,
    constant_schedule,
    fp16_needs_gpu,
    offload_stages,
    deepspeed_passthrough,
    *check_resources.CHECKS,
    *check_recovery.CHECKS,
    *check_schedule.CHECKS,
)


def cross_check(view: View) -> list[Problem]:
    """Every contradiction that can be judged from the valid parts of the job."""
    problems: list[Problem] = []
    for check in CHECKS:
        try:
            # One by one: what a check found before it met an invalid part still stands.
            for problem in itertools.islice(check(view), MAX_PROBLEMS):
                problems.append(problem)
        except Unavailable:
            continue
    return problems
