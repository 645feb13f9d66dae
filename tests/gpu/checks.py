"""Checks of correctness: numbers, recovery, errors of devices. Each is given the lab and fills its result."""

import os
import signal
import time
from collections.abc import Sequence

from orchestrator.domain.policy.numeric import Injection
from orchestrator.domain.session import TrainPlan
from orchestrator.domain.step_report import StepReport
from orchestrator.gang.agent.worker_actor import Raised
from orchestrator.gang.group.gang_policy import CPU_PATIENCE_S, GPU_PATIENCE_S
from orchestrator.planner.batch_shape import shape_batch
from tests.gpu.lab import Lab
from tests.gpu.plain_ranks import Ranks, resumed
from tests.gpu.table import Result

ENTRIES = "tests.gpu.entries"
FP32_NOISE, BF16_NOISE = 1e-5, 1e-2
"""Relative differences of losses of the same samples: by the order of additions, and by rounding to 8 bits."""
RECOVERY_S = 3.0
ALIVE_S = 65.0
"""A watchdog that was to end a survivor would have slept for 60 s."""


def check_facts(lab: Lab, result: Result) -> None:
    """Device, driver, versions; a job on CPUs sees no GPU."""
    spec = lab.jobs.spec(0, "fp32", 1)
    with lab.ranks(1) as ranks:
        found = _facts(ranks, lab.jobs.plan("facts", spec, 1))
    for name in ("device", "capability", "nccl", "torch", "cuda_build", "deepspeed", "transformers"):
        if name in found:
            result.add(name, str(found[name]))
    if lab.gpu:
        gib = 1 << 30
        result.add("memory", f"{found['free_bytes'] / gib:.1f} GiB free of {found['total_bytes'] / gib:.1f}")
    on_cpu = Lab(lab.directory, False, lab.context)
    with on_cpu.ranks(1) as ranks:
        hidden = _facts(ranks, on_cpu.jobs.plan("cpu", on_cpu.jobs.spec(0, "fp32", 1), 1))
    result.require("a job on CPUs sees no GPU", not hidden["available"])


def _facts(ranks: Ranks, plan: TrainPlan) -> dict[str, object]:
    (ended,) = ranks.run(plan, entry=f"{ENTRIES}:facts")
    assert not isinstance(ended, Raised), ended
    return ended.facts


def check_stages(lab: Lab, result: Result) -> None:
    """fp32, then bf16 at every ZeRO stage: the losses follow those of fp32."""
    steps = 12 if lab.gpu else 4
    with lab.ranks(1) as ranks:
        jobs = lab.jobs
        plain = _losses(ranks.train(jobs.plan("fp32", jobs.spec(0, "fp32", steps), 1)))
        result.require("fp32 learns", plain[-1] < plain[0], f"{plain[0]:.3f} to {plain[-1]:.3f}")
        for stage in (0, 1, 2, 3) if lab.gpu else (1, 3):
            found = _losses(ranks.train(jobs.plan(f"bf16-{stage}", jobs.spec(stage, "bf16", steps), 1)))
            _compare(result, f"bf16, stage {stage}, against fp32", found, plain, 2 * BF16_NOISE)


def check_ranks(lab: Lab, result: Result) -> None:
    """Two ranks give the losses of one."""
    precision, noise = ("bf16", BF16_NOISE) if lab.gpu else ("fp32", FP32_NOISE)
    steps = 12 if lab.gpu else 4
    with lab.ranks(2) as ranks:
        for stage in (1, 3):
            spec = lab.jobs.spec(stage, precision, steps)
            alone = _losses(ranks.train(lab.jobs.plan(f"alone-{stage}", spec, 1), [0]))
            pair = _losses(ranks.train(lab.jobs.plan(f"pair-{stage}", spec, 2)))
            _compare(result, f"2 ranks against 1, {precision}, stage {stage}", pair, alone, noise)


def check_recovery(lab: Lab, result: Result) -> None:
    """Three ranks, one is killed in the middle of a step, later one is stopped: the same processes go on with fewer."""
    precision, noise = ("bf16", BF16_NOISE) if lab.gpu else ("fp32", FP32_NOISE)
    steps = 60 if lab.gpu else 24
    patience_s = GPU_PATIENCE_S if lab.gpu else CPU_PATIENCE_S
    spec = lab.jobs.spec(1, precision, steps)
    with lab.ranks(3) as ranks:
        plan = lab.jobs.plan("recovery", spec, 3)
        undisturbed = _losses(ranks.train(lab.jobs.plan("undisturbed", spec, 3)))
        pids = [rank.process.pid for rank in ranks.ranks]
        ranks.begin(plan, entry=f"{ENTRIES}:paced")
        first = _until_protected(ranks, 6)
        os.kill(pids[2], signal.SIGKILL)
        second = _go_on(lab, result, ranks, plan, [0, 1], "SIGKILL", patience_s)
        _until_protected(ranks, second.step + 6)
        os.kill(pids[1], signal.SIGSTOP)
        try:
            _go_on(lab, result, ranks, plan, [0], "SIGSTOP", patience_s)
        finally:
            os.kill(pids[1], signal.SIGKILL)
        ranks.pump(lambda: not ranks.members[0].running, 120.0)
        last = {report.step: report.loss for report in ranks.steps}
        expected = [undisturbed[step - 1] for step in last]
        _compare(result, "losses after both", list(last.values()), expected, noise)
        result.require("all steps are made", max(last) == steps, f"{max(last)} of {steps}")
        _compare(result, "loss before both", [first.loss], [undisturbed[first.step - 1]], noise)
        if lab.gpu:
            time.sleep(ALIVE_S)
            result.require(f"the survivor lives {ALIVE_S:.0f} s later", ranks.ranks[0].alive)
        result.require("it is the process that began", ranks.ranks[0].process.pid == pids[0])


def _go_on(
    lab: Lab, result: Result, ranks: Ranks, plan: TrainPlan, survivors: Sequence[int], how: str, patience_s: float
) -> StepReport:
    """Interrupt the survivors, and have them go on from the vaults; the first report after it."""
    started_s = time.monotonic()
    lost = [index for index in range(len(ranks.members)) if index not in survivors]
    unwound_s = ranks.interrupt(lost, patience_s)
    members = [ranks.ranks[index] for index in survivors]
    left = not any(rank.running for rank in members)
    result.require(f"{how}: survivors leave the collective", left, f"{unwound_s:.2f} s")
    ended = [rank.ended for rank in members]
    causes = sorted({str(each.details.get("cause")) for each in ended if isinstance(each, Raised)})
    result.require(f"{how}: they know that a peer is lost", causes == ["peer"], ", ".join(causes))
    shares = shape_batch(sum(plan.shares), len(survivors), None).shares
    ranks.begin(resumed(plan, ranks.newest(), shares), survivors, f"{ENTRIES}:paced")
    ranks.pump(lambda: bool(ranks.steps), 60.0)
    seconds = time.monotonic() - started_s
    limit_s = RECOVERY_S if lab.gpu else 10 * RECOVERY_S
    result.add(f"{how}: first step after it", f"{seconds:.2f} s", f"<= {limit_s:.0f} s", seconds <= limit_s)
    return ranks.steps[0]


def _until_protected(ranks: Ranks, step: int) -> StepReport:
    """Wait for a step whose state is whole in the vaults; its report."""
    ranks.pump(lambda: any(r.step >= step and r.protected_step is not None for r in ranks.steps), 90.0)
    return ranks.steps[-1]


def check_assertion(lab: Lab, result: Result) -> None:
    """A kernel of one rank refuses its input: that process is given up, the other one goes on."""
    if not lab.gpu:
        result.skipped = "kernels assert on GPUs only"
        return
    spec = lab.jobs.spec(1, "bf16", 20)
    with lab.ranks(2) as ranks:
        plan = lab.jobs.plan("assertion", spec, 2)
        ranks.begin(plan, entry=f"{ENTRIES}:failing_assertion")
        ranks.pump(lambda: not ranks.members[1].running, 60.0)
        ended = ranks.members[1].ended
        told = ended.details.get("cause") if isinstance(ended, Raised) else f"died: {ended}"
        result.require("the error is known for what it is", told == "assertion", str(told))
        ranks.ranks[1].process.kill()
        unwound_s = ranks.interrupt([1], GPU_PATIENCE_S)
        result.require("the other rank leaves the collective", not ranks.members[0].running, f"{unwound_s:.2f} s")
        shares = shape_batch(sum(plan.shares), 1, None).shares
        steps = ranks.train(resumed(plan, ranks.newest(), shares), [0])
        result.require("and goes on alone", steps[-1].step == 20, f"to step {steps[-1].step}")


def check_out_of_memory(lab: Lab, result: Result) -> None:
    """A step finds no memory: the process gives back what it has, and trains on with half the micro batch."""
    # ZeRO's buckets of 2 GB are allocated, and hardly touched: on the host they would not fit.
    spec = lab.jobs.spec(1 if lab.gpu else 0, "fp32", 6)
    with lab.ranks(1) as ranks:
        plan = lab.jobs.plan("oom", spec, 1, injections=(Injection("oom", 4, 0),))
        (ended,) = ranks.run(plan)
        told = ended.details.get("cause") if isinstance(ended, Raised) else f"none: {ended}"
        result.require("the error is known for what it is", told == "out of memory", str(told))
        if lab.gpu:
            (memory,) = ranks.run(plan, entry=f"{ENTRIES}:device_memory")
            assert not isinstance(memory, Raised), memory
            held_mib = int(memory.facts["reserved_bytes"]) / 2**20
            result.add("device memory held between generations", f"{held_mib:.0f} MiB", "<= 64 MiB", held_mib <= 64)
        half = resumed(lab.jobs.plan("half", spec.model_copy(), 1), ranks.newest(), plan.shares)
        smaller = _with_micro_batch(half, max(1, plan.micro_batch // 2))
        steps = ranks.train(smaller)
        result.require("half the micro batch trains to the end", steps[-1].step == 6, f"to step {steps[-1].step}")
        result.require("from the vaults", steps[0].step > 1, f"from step {steps[0].step}")


def _with_micro_batch(plan: TrainPlan, micro_batch: int) -> TrainPlan:
    from dataclasses import replace

    return replace(plan, micro_batch=micro_batch, accumulation=-(-plan.shares[0] // micro_batch))


def _losses(steps: Sequence[StepReport]) -> list[float]:
    return [report.loss for report in steps]


def _compare(result: Result, what: str, found: Sequence[float], expected: Sequence[float], limit: float) -> None:
    """Largest relative difference of two loss curves."""
    assert len(found) == len(expected), f"{what}: {len(found)} losses, expected {len(expected)}"
    largest = max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))
    result.add(what, f"{largest:.1e}", f"<= {limit:.0e}", largest <= limit)
