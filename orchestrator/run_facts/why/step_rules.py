"""Rules about what happens inside the steps. Each is a pure function of the read model: a bottleneck, or None if the
share of the wall clock is below the rule's threshold or was not recorded."""

from dataclasses import dataclass

from orchestrator.run_facts.quantity_text import count, duration, size
from orchestrator.run_facts.run_model import RunFacts
from orchestrator.run_facts.step_point import OWN_PHASES
from orchestrator.run_facts.why.bottleneck import Bottleneck, bottleneck

DATA = OWN_PHASES[0]
DATA_WAIT_SHARE = 0.05
SLOW_RANK_SHARE = 0.05
SLOW_RANK_RATIO = 1.25
"""Own time of the slowest rank of a step, divided by the median: below, it is the noise of equal machines."""
SLOW_RANK_STEPS = 0.5
"""Of W ranks, one has to be the slowest in this share of the steps and as much again of 1/W: three of four steps with
two ranks, of which each is the slowest in every other step by chance."""
COMMUNICATION_SHARE = 0.15
"""Some communication is normal: data-parallel training is planned with 5 to 10%."""
MICRO_BATCH_SHARE = 0.10
"""If the step has several micro steps, so that a larger micro batch changes no result."""
SMALL_STEP_SHARE = 0.25
"""If it has one: then only a larger global batch or fewer workers help."""
PADDING_SHARE = 0.10
SNAPSHOT_SHARE = 0.05
"""`checkpoint.overhead_budget` is 2% by default."""


def data_wait(run: RunFacts) -> Bottleneck | None:
    """Training waits for samples. In each step the rank that waits longest counts: the others wait for it then."""
    totals, wall_s = run.steps.series.totals, run.wall_s
    waited_s = totals.data_wait_max_s
    if wall_s <= 0 or waited_s / wall_s < DATA_WAIT_SHARE:
        return None
    longest, mean = waited_s / max(1, totals.steps), totals.phase_s("data_wait") / max(1, totals.steps)
    evidence = [
        f"a step waits {duration(longest)} for the samples of the rank that gets them last"
        f" ({duration(mean)} in the mean over the ranks)"
    ]
    if run.data and isinstance(run.data.get("directory"), str):
        evidence.append(f"the prepared data is read from {run.data['directory']}")
    advice = [
        "put the prepared data on a faster disk: `data.cache_dir` on a local SSD instead of a network file system",
        "give the node more memory: token files that fit into its page cache are read from the disk once",
    ]
    last = _last_rank(run)
    if last is not None and last.phase == DATA:
        evidence.append(f"rank {last.rank}{last.where} waits longest in most steps")
        advice.insert(0, f"compare the disk of {last.machine} with those of the other nodes")
    return bottleneck("data_wait", waited_s, wall_s, "training waits for data", tuple(evidence), tuple(advice))


@dataclass(frozen=True)
class _LastRank:
    """A rank that is the slowest in most steps."""

    rank: int
    phase: str
    """In which it loses most time; of `OWN_PHASES`."""
    node: str | None
    lost_s: float
    ratio: float
    """Its own time, divided by the median rank's."""
    steps: int
    """In which it was the slowest."""

    @property
    def where(self) -> str:
        return f" on node {self.node}" if self.node else ""

    @property
    def machine(self) -> str:
        return f"node {self.node}" if self.node else "its node"


def _last_rank(run: RunFacts) -> _LastRank | None:
    """The rank that the others wait for in most steps, if there is one.

    Its cost is how far it was behind the median in the steps in which it was the slowest, less what the other ranks
    cost in the same way: between equal machines every rank is the slowest now and then.
    """
    totals, last = run.steps.series.totals, run.steps.series.last
    if last is None or not totals.straggling_by_rank_s or last.world_size < 2:
        return None
    by_rank = totals.straggling_by_rank_s
    rank = max(by_rank, key=lambda each: by_rank[each])
    slowest_steps = totals.slowest_by_rank[rank]
    often = slowest_steps / max(1, sum(totals.slowest_by_rank.values()))
    if often < SLOW_RANK_STEPS * (1.0 + 1.0 / last.world_size):
        return None
    others_s = (sum(by_rank.values()) - by_rank[rank]) / (last.world_size - 1)
    own_s = totals.own_median_s * slowest_steps / max(1, totals.steps)
    ratio = 1.0 + by_rank[rank] / own_s if own_s > 0 else 1.0
    phases_s = totals.straggling_by_phase_s
    phase = OWN_PHASES[phases_s.index(max(phases_s))]
    return _LastRank(rank, phase, run.events.nodes.get(rank), by_rank[rank] - others_s, ratio, slowest_steps)


def slow_rank(run: RunFacts) -> Bottleneck | None:
    """One rank takes longer than the others, which wait for it in every step. If it is data that it waits for, that is
    what `data_wait` finds."""
    last, wall_s, steps = _last_rank(run), run.wall_s, run.steps.series.totals.steps
    if last is None or last.phase == DATA or wall_s <= 0:
        return None
    if last.lost_s / wall_s < SLOW_RANK_SHARE or last.ratio < SLOW_RANK_RATIO:
        return None
    evidence = (
        f"rank {last.rank}{last.where} was the slowest in {last.steps:,} of {steps:,} steps and took {last.ratio:.1f}"
        " times as long as the median rank, waits for other ranks not counted",
        f"it loses most time in {last.phase}",
    )
    advice = (
        f"look for other processes, throttled clocks or a broken device on {last.machine}",
        f"take {last.machine} out of the cluster; the run continues without it and grows again with another node",
    )
    headline = f"rank {last.rank} is slow, mostly in {last.phase}; all other ranks wait for it"
    return bottleneck("slow_rank", last.lost_s, wall_s, headline, evidence, advice)


def communication(run: RunFacts) -> Bottleneck | None:
    """Collectives take long although no rank is waited for: the time in collectives of each step's slowest rank, which
    is the last to enter them. Measured with gloo in every step, on GPUs in a sample of the steps."""
    totals, wall_s = run.steps.series.totals, run.wall_s
    seconds = totals.of_all_steps(totals.transfer_s)
    if wall_s <= 0 or seconds / wall_s < COMMUNICATION_SHARE:
        return None
    plan, per_step = run.events.plan, duration(seconds / max(1, totals.steps))
    evidence = [f"the rank that enters the collectives of a step last still spends {per_step} in them"]
    if plan is not None:
        evidence.append(f"{count(plan.parameters)} parameters over {plan.world_size} workers")
    advice = (
        "use a faster network between the nodes, or fewer nodes with more workers each (`resources.placement: pack`)",
        "exchange less: `zero.stage: 1` exchanges two thirds of what stage 3 does, if the model fits",
        "compute more between two exchanges: a larger `train.global_batch`",
    )
    headline = "communication between the workers takes long"
    return bottleneck("communication", seconds, wall_s, headline, tuple(evidence), advice)


def compute_s(run: RunFacts) -> float:
    """Seconds of forward and backward without collectives, mean over the ranks."""
    totals = run.steps.series.totals
    waited_s = totals.of_all_steps(totals.collective_s)
    return max(0.0, totals.phase_s("forward") + totals.phase_s("backward") - waited_s)


def micro_batch(run: RunFacts) -> Bottleneck | None:
    """Micro steps are so small that most of their cost does not depend on their samples.

    The share of a forward pass that does not was measured (`micro_step.measured`); the backward pass is taken to have
    the same share. With A micro steps in a step, a micro batch A times as large saves (A - 1) / A of it.
    """
    measured, last, wall_s = run.events.micro_step, run.steps.series.last, run.wall_s
    if measured is None or last is None or measured.forward_s <= 0 or wall_s <= 0:
        return None
    fixed = min(1.0, measured.fixed_s / measured.forward_s)
    steps = last.accumulation
    saved_s = compute_s(run) * fixed * ((steps - 1) / steps if steps > 1 else 1.0)
    if saved_s / wall_s < (MICRO_BATCH_SHARE if steps > 1 else SMALL_STEP_SHARE):
        return None
    evidence = [
        f"{fixed:.0%} of a forward pass does not depend on its samples: {duration(measured.fixed_s)} of"
        f" {duration(measured.forward_s)} (measured after step {measured.step})",
        f"a worker computes {last.micro_batch} samples at once, {steps} times a step",
    ]
    device = run.events.device
    if device is not None and last.on_gpus:
        evidence.append(f"peak memory {size(last.memory_max_bytes)} of {size(device.total_bytes)} on the GPU")
    if steps > 1:
        advice = (
            f"raise `train.micro_batch` (now {last.micro_batch}); the losses stay the same, because the global batch"
            " does",
            "`train.micro_batch: auto` takes the largest that fits",
        )
        headline = "the micro batch is too small"
        return bottleneck("micro_batch", saved_s, wall_s, headline, tuple(evidence), advice)
    advice = (
        "train with fewer workers, so that each has more samples of a step",
        "raise `train.global_batch` if the training allows it: it changes the result",
    )
    headline = "a worker has too few samples in a step"
    return bottleneck("micro_batch", saved_s, wall_s, headline, tuple(evidence), advice)


def padding(run: RunFacts) -> Bottleneck | None:
    """Positions without a token are computed: their share of the positions, of the forward and backward time."""
    share, wall_s = run.steps.series.totals.padding_share, run.wall_s
    if share is None or wall_s <= 0:
        return None
    wasted_s = share * compute_s(run)
    if wasted_s / wall_s < PADDING_SHARE:
        return None
    totals = run.steps.series.totals
    evidence = [
        f"{share:.0%} of the computed positions are padding: {count(totals.positions - totals.positions_tokens)} of"
        f" {count(totals.positions)}",
    ]
    if run.data and run.data.get("packing") is False:
        mean_tokens = totals.positions_tokens / max(1, totals.samples)
        evidence.append(f"documents are not packed; a sample has {mean_tokens:.0f} tokens in the mean")
    advice = (
        "set `data.packing: true`: documents are joined and cut, and no position is padding (it changes the samples)",
        "or a smaller `train.micro_batch`: a micro batch is only as wide as its longest sample",
    )
    headline = "padding is computed in place of tokens"
    return bottleneck("padding", wasted_s, wall_s, headline, tuple(evidence), advice)


def snapshots(run: RunFacts) -> Bottleneck | None:
    """Training pauses while its state is copied into the memory of the nodes."""
    totals, wall_s = run.steps.series.totals, run.wall_s
    stalled_s = totals.phase_s("snapshot")
    if wall_s <= 0 or stalled_s / wall_s < SNAPSHOT_SHARE:
        return None
    evidence = (f"a step pauses {duration(stalled_s / max(1, totals.steps))} for copies in the mean",)
    advice = (
        "leave `checkpoint.memory_interval_steps` unset: then `checkpoint.overhead_budget` (2%) sets the interval",
        "check the memory bandwidth of the nodes; a copy to host memory takes seconds only if the host swaps",
    )
    headline = "training pauses for copies of its state"
    return bottleneck("snapshots", stalled_s, wall_s, headline, evidence, advice)
