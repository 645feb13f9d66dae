"""Checks that measure: saved state, snapshots, memory against the plan, speed against a plain loop."""

from pathlib import Path
from statistics import median
from typing import Any

from orchestrator.data.data_manifest import DataManifest
from orchestrator.domain.step_report import StepReport
from orchestrator.gang.agent.worker_actor import Raised
from orchestrator.planner.device_memory import device_need
from orchestrator.planner.model_shape import model_shape
from tests.gpu.jobs import B1, M355, TINY
from tests.gpu.lab import Lab
from tests.gpu.plain_ranks import resumed
from tests.gpu.table import Result

ENTRIES = "tests.gpu.entries"
MEASURES = "tests.gpu.plain_loop"
STALL_SHARE = 0.02
MFU_SHARE = 0.97
PLAN_SHARE = 0.1
WARM_STEPS = 5
STATES: tuple[tuple[str, int, str, dict[str, Any]], ...] = (
    ("fp32, stage 0", 0, "fp32", {}),
    ("bf16, stage 0", 0, "bf16", {}),
    ("bf16, stage 1", 1, "bf16", {}),
    ("bf16, stage 2", 2, "bf16", {}),
    ("bf16, stage 3", 3, "bf16", {}),
    ("fp16, stage 0", 0, "fp16", {}),
    ("fp16, stage 2", 2, "fp16", {}),
    ("bf16, stage 2, optimizer on the host", 2, "bf16", {"offload_optimizer": {"device": "cpu"}}),
)
"""One of each optimizer class of DeepSpeed."""


def check_saved_state(lab: Lab, result: Result) -> None:
    """What vaults keep, put into a new engine, is bit for bit what was there."""
    with lab.ranks(1) as ranks:
        for name, stage, precision, zero in STATES:
            if not lab.gpu and (precision == "fp16" or zero):
                continue  # the spec refuses them on CPUs
            spec = lab.jobs.spec(stage, precision, 3, zero=zero)
            plan = lab.jobs.plan(name.replace(", ", "-").replace(" ", "-"), spec, 1)
            digests = []
            for each in (plan, None):
                again = each or resumed(plan, ranks.newest(), plan.shares)
                (ended,) = ranks.run(again, entry=f"{ENTRIES}:state_digest")
                if isinstance(ended, Raised):
                    raise RuntimeError(ended.traceback_text)
                digests.append(ended.facts["digest"])
            result.require(f"{name}: restored state is equal", digests[0] == digests[1])


def check_memory(lab: Lab, result: Result) -> None:
    """Peak memory of the device against the plan; the loss at a vocabulary of 128k."""
    if not lab.gpu:
        result.skipped = "the plan is of a GPU's memory"
        return
    for name, config, micro_batch, length in (("355 M", M355, 8, 1024), ("355 M, longer", M355, 4, 2048)):
        spec = lab.jobs.spec(
            1, "bf16", 4, batch=micro_batch, sequence_length=length, micro_batch=micro_batch, config=config,
            vocabulary=32_768,
        )  # fmt: skip
        with lab.ranks(1) as ranks:
            plan = lab.jobs.plan(f"memory-{micro_batch}", spec, 1)
            peak = max(report.ranks.every[0].memory.peak_allocated_bytes or 0 for report in ranks.train(plan))
        manifest = DataManifest.read(Path(plan.data_dir))
        need = device_need(spec, model_shape({**config, "n_positions": length}, manifest.vocab_size), 1)
        planned = need.total_bytes(micro_batch) - need.context_bytes - need.communicators_bytes
        off = planned / peak - 1.0
        gib = 1 << 30
        result.add(f"{name}: planned, measured", f"{planned / gib:.2f} GiB, {peak / gib:.2f} GiB")
        result.add(f"{name}: the plan is off by", f"{off:+.1%}", "within 10%", abs(off) <= PLAN_SHARE)
    with lab.ranks(1) as ranks:
        (ended,) = ranks.run(plan, entry=f"{ENTRIES}:large_vocabulary")
    assert not isinstance(ended, Raised), ended.traceback_text
    chunked, plain = int(ended.facts["chunked_bytes"]), int(ended.facts["plain_bytes"])
    result.add("loss of 8192 tokens, vocabulary 128k: peak", f"{chunked >> 20:,} MiB, plain {plain >> 20:,} MiB")
    result.require("and less than a quarter of the plain one's", chunked < plain / 4)
    difference = float(ended.facts["difference"])
    result.add("difference of the two losses", f"{difference:.1e}", "<= 1e-3", difference <= 1e-3)


def check_copies(lab: Lab, result: Result) -> None:
    """How fast a snapshot gets from the device into shared memory, pageable and page-locked."""
    if not lab.gpu:
        result.skipped = "there is no device to copy from"
        return
    with lab.ranks(1) as ranks:
        (ended,) = ranks.run(lab.jobs.plan("copies", lab.jobs.spec(0, "fp32", 1), 1), entry=f"{ENTRIES}:copy_speed")
    assert not isinstance(ended, Raised), ended.traceback_text
    for name in ("pageable", "page-locked"):
        result.add(f"{name}: device to host", f"{float(ended.facts[name]) / 1e9:.1f} GB/s")
    result.add("to page-lock 1 GiB", f"{float(ended.facts['register_s']):.2f} s")
    result.require("page-locked memory is faster", float(ended.facts["page-locked"]) > float(ended.facts["pageable"]))


def check_speed(lab: Lab, result: Result) -> None:
    """Tokens a second against a plain PyTorch loop with the same settings, and what snapshots cost."""
    sizes = (("355 M", M355, 8), ("1 B", B1, 4)) if lab.gpu else (("tiny", TINY, 2),)
    for name, config, micro_batch in sizes:
        steps, length = (25, 1024) if lab.gpu else (8, 64)
        spec = lab.jobs.spec(
            1, "bf16", steps, batch=2 * micro_batch, sequence_length=length, micro_batch=micro_batch, config=config,
            vocabulary=32_768 if lab.gpu else 512,
        )  # fmt: skip
        plan = lab.jobs.plan(f"speed-{name.replace(' ', '-')}", spec, 1)
        with lab.ranks(1) as ranks:
            ours = ranks.train(plan, limit_s=120.0)[WARM_STEPS:]
        with lab.ranks(1) as ranks:
            (ended,) = ranks.run(plan, entry=f"{MEASURES}:train", limit_s=120.0)
        if isinstance(ended, Raised):
            raise RuntimeError(ended.traceback_text)
        _compare_speed(lab, result, name, ours, float(ended.facts["tokens_per_s"]))


def _compare_speed(lab: Lab, result: Result, name: str, ours: list[StepReport], plain: float) -> None:
    tokens_per_s = median(report.tokens_per_s for report in ours)
    ratio = tokens_per_s / plain
    met = ratio >= MFU_SHARE if lab.gpu else None
    bar = f">= {MFU_SHARE}" if lab.gpu else ""
    result.add(f"{name}: tokens/s, and of the plain loop", f"{tokens_per_s:,.0f}, {plain:,.0f}")
    result.add(f"{name}: ratio", f"{ratio:.3f}", bar, met)
    mfu = [report.mfu for report in ours if report.mfu is not None]
    if mfu:
        result.add(f"{name}: MFU", f"{median(mfu):.1%}")
    share = sum(report.ranks.every[0].phases.snapshot_s for report in ours) / sum(report.step_time_s for report in ours)
    met = share <= STALL_SHARE if lab.gpu else None
    result.add(f"{name}: snapshots' share of the step", f"{share:.2%}", f"<= {STALL_SHARE:.0%}" if lab.gpu else "", met)
