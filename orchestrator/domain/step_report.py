"""The report of one optimizer step: the one record that files, metrics, terminal and ledger are made from."""

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class PhaseTimes:
    """Seconds of one step on one rank, by phase. What is in none of them is `step_time_s` minus their sum."""

    data_wait_s: float
    forward_s: float
    backward_s: float
    """Includes the gradient communication that overlaps it."""
    optimizer_s: float
    """Gradient reduction at the accumulation boundary, clipping, update, parameter gather."""
    checkpoint_s: float = 0.0
    snapshot_s: float = 0.0
    """Copying state into the vault, after the step before this one."""


@dataclass(frozen=True)
class CollectiveTimes:
    """Seconds of a step's phases that one rank was in collectives: waiting for other ranks, and the transfer. Measured
    with gloo alone; zero with NCCL, where the device waits."""

    forward_s: float = 0.0
    backward_s: float = 0.0
    optimizer_s: float = 0.0


@dataclass(frozen=True)
class RankMemory:
    """Memory of one rank in bytes. The device fields are None on a CPU."""

    rss_bytes: int
    peak_rss_bytes: int
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    peak_allocated_bytes: int | None = None


@dataclass(frozen=True)
class RankReport:
    """What differs between ranks."""

    rank: int
    samples: int
    tokens: int
    phases: PhaseTimes
    memory: RankMemory
    waits: CollectiveTimes = field(default_factory=CollectiveTimes)


@dataclass(frozen=True)
class StepReport:
    """One optimizer step of the whole gang."""

    step: int
    """Optimizer steps completed, this one included: the first step is 1."""
    time_s: float
    """Unix time at the end of the step."""
    epoch: float
    """Passes over the training samples so far."""
    loss: float
    """Mean over the target tokens of the global batch, in nats."""
    grad_norm: float | None
    """Global L2 norm before clipping."""
    lr: float
    """Learning rate this step used."""
    tokens: int
    """Real (not padding) tokens of the global batch."""
    target_tokens: int
    """Tokens the loss is a mean over."""
    samples: int
    first_position: int
    """Position of the step's first sample in the global order; the batch is [first, first + samples)."""
    data_digest: int
    """Order-free digest of the samples actually fed, see `data.order`."""
    step_time_s: float
    tokens_per_s: float
    tokens_per_s_per_worker: float
    tflops_per_s: float | None
    """Model TFLOP/s of the whole gang, without recomputation."""
    mfu: float | None
    """Model FLOP utilisation (PaLM, arXiv:2204.02311, appendix B); None where the device's peak is unknown."""
    world_size: int
    micro_batch: int
    accumulation: int
    ranks: tuple[RankReport, ...]
    protected_step: int | None = None
    """The newest step whose state is whole in the vaults, as known at this step; None where there is none."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object; the reverse of `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "StepReport":
        """Raises KeyError or TypeError where a field is missing; unknown fields are ignored, so old readers
        read new files."""
        known = {f.name for f in fields(cls)}
        kept = {k: v for k, v in value.items() if k in known}
        if kept["loss"] is None:  # files have null for what is no number
            kept["loss"] = math.nan
        kept["ranks"] = tuple(
            RankReport(
                rank=r["rank"],
                samples=r["samples"],
                tokens=r["tokens"],
                phases=PhaseTimes(**r["phases"]),
                memory=RankMemory(**r["memory"]),
                waits=CollectiveTimes(**r.get("waits", {})),
            )
            for r in kept["ranks"]
        )
        return cls(**kept)
