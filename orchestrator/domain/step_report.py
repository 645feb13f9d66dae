"""The report of one optimizer step: the one record that files, metrics, terminal and ledger are made from."""

import math
from dataclasses import dataclass

from orchestrator.domain.ranks.rank_report import RankReport
from orchestrator.domain.ranks.rank_summary import RankSummary, ranks_to_columns, summarise
from orchestrator.json_values import JsonFields, JsonObject, flag, integer, number, objects, optional

STEP_VERSION = 2
"""Of the format of steps. Lines of version 1 have no version, and the reports of all ranks instead of a summary."""


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
    """Model FLOP utilisation (PaLM, arXiv:2204.02311, appendix B); None if the device's peak is unknown."""
    world_size: int
    micro_batch: int
    accumulation: int
    ranks: RankSummary
    protected_step: int | None = None
    """The newest step whose state is whole in the vaults, as known at this step; None if there is none."""
    loss_scale: float | None = None
    """Factor that the loss had in this step; None unless the precision is fp16."""
    skipped: bool = False
    """The update was left out: a gradient was not finite. Under fp16 that is how the loss scale is found."""
    positions: int | None = None
    """Positions that were computed: the real tokens and the padding. None in reports of earlier versions."""

    def to_json(self) -> JsonObject:
        """The step's line in `steps.jsonl`."""
        values = {name: value for name, value in vars(self).items() if name != "ranks"}
        return {"v": STEP_VERSION, **values, **self.ranks.to_json()}

    def to_message(self) -> JsonObject:
        """The line, and `ranks` if the reports of all ranks are known. `from_json` reads both."""
        every = self.ranks.every
        return {**self.to_json(), **({"ranks": ranks_to_columns(every)} if every else {})}

    def to_ranks_json(self) -> JsonObject | None:
        """The step's line in `ranks.jsonl`; None if it has none."""
        every = self.ranks.every
        if not every:
            return None
        return {"v": STEP_VERSION, "step": self.step, "time_s": self.time_s, **ranks_to_columns(every)}

    @classmethod
    def from_json(cls, value: JsonFields) -> "StepReport":
        """Of this version or version 1. Unknown fields are ignored. Raises JsonShapeError if one is missing."""
        return cls(
            step=integer(value, "step"),
            time_s=number(value, "time_s"),
            epoch=number(value, "epoch"),
            loss=math.nan if "loss" in value and value["loss"] is None else number(value, "loss"),  # null: no number
            grad_norm=optional(number, value, "grad_norm"),
            lr=number(value, "lr"),
            tokens=integer(value, "tokens"),
            target_tokens=integer(value, "target_tokens"),
            samples=integer(value, "samples"),
            first_position=integer(value, "first_position"),
            data_digest=integer(value, "data_digest"),
            step_time_s=number(value, "step_time_s"),
            tokens_per_s=number(value, "tokens_per_s"),
            tokens_per_s_per_worker=number(value, "tokens_per_s_per_worker"),
            tflops_per_s=optional(number, value, "tflops_per_s"),
            mfu=optional(number, value, "mfu"),
            world_size=integer(value, "world_size"),
            micro_batch=integer(value, "micro_batch"),
            accumulation=integer(value, "accumulation"),
            ranks=_ranks(value),
            protected_step=optional(integer, value, "protected_step"),
            loss_scale=optional(number, value, "loss_scale"),
            skipped=optional(flag, value, "skipped") or False,
            positions=optional(integer, value, "positions"),
        )


def _ranks(value: JsonFields) -> RankSummary:
    if "v" in value:
        return RankSummary.from_json(value)
    ranks = tuple(RankReport.from_json(each) for each in objects(value, "ranks"))
    return summarise(ranks)
