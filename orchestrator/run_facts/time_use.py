"""Where the time of a run went, from `ledger.json` of either version. Pure.

Version 2 has worker-seconds by class (`goodput.ledger_result`), version 1 wall-clock seconds by category. Shares mean
the same in both: of the time that the workers were reserved, or that the run took.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.goodput.time_class import RECOVERY_CLASSES, TimeClass
from orchestrator.json_values import JsonFields
from orchestrator.run_facts.lenient_json import fields_of_object, number_or_none

_FORMER = {
    "restoring": "startup", "preparing_data": "startup", "starting_cluster": "startup", "starting_workers": "startup",
    "building": "startup", "training": "productive", "evaluating": "evaluation", "checkpointing": "checkpoint_stall",
    "exporting": "export", "recovering": "recovery_rebuild", "lost": "recomputed",
}  # fmt: skip
"""Categories of version 1, and the class that each belongs to now."""
RECOVERING = (*RECOVERY_CLASSES, TimeClass.RECOMPUTED)
"""What recoveries cost."""


@dataclass(frozen=True)
class TimeUse:
    """Seconds by class; they add up to `total_s`."""

    elapsed_s: float
    """Wall time in which the run had a driver."""
    total_s: float
    """Worker-seconds from reservation to release; in version 1 the same as `elapsed_s`."""
    of_workers: bool
    """Whether seconds are worker-seconds."""
    goodput: float
    """Share that was spent on training steps that count, as the ledger computes it."""
    seconds: Mapping[str, float]
    """In the order of the ledger."""
    ettr: float | None = None
    """Effective training time ratio; None in version 1."""
    spent_usd: float | None = None
    """None if the job does not say what a worker costs."""

    def share(self, name: str) -> float:
        """Share of all time; 0 for a name that is not there."""
        return self.seconds.get(name, 0.0) / self.total_s if self.total_s > 0 else 0.0

    def share_of(self, *classes: TimeClass) -> float:
        """Share of all time that belongs to some classes, whatever the version calls them."""
        wanted = {each.value for each in classes}
        return sum(self.share(name) for name in self.seconds if _FORMER.get(name, name) in wanted)

    def knows(self, time_class: TimeClass) -> bool:
        """Whether the ledger tells this class apart from others."""
        return self.of_workers or time_class.value in {_FORMER.get(name, name) for name in self.seconds}


def class_of(name: str) -> str:
    """The class of a name in a ledger of either version."""
    return _FORMER.get(name, name)


def time_use(ledger: JsonFields | None) -> TimeUse | None:
    """What a ledger says; None if there is none, or it has no time in it."""
    elapsed_s = number_or_none(ledger, "elapsed_s") if ledger else None
    if not ledger or not elapsed_s:
        return None
    found = fields_of_object(ledger, "seconds")
    seconds = {name: max(0.0, number_or_none(found, name) or 0.0) for name in found}
    reserved_s = number_or_none(ledger, "reserved_s")
    return TimeUse(
        elapsed_s=elapsed_s,
        total_s=elapsed_s if reserved_s is None else reserved_s,
        of_workers=reserved_s is not None,
        goodput=number_or_none(ledger, "goodput") or 0.0,
        seconds=seconds,
        ettr=number_or_none(ledger, "ettr"),
        spent_usd=number_or_none(fields_of_object(ledger, "cost"), "spent_usd"),
    )
