"""Where the time of a run went, from `ledger.json`. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.json_values import JsonFields
from orchestrator.run_facts.lenient_json import fields_of_object, number_or_none

PRODUCTIVE = "training"
"""The category of steps that count."""


@dataclass(frozen=True)
class TimeUse:
    """Seconds by category; they add up to `elapsed_s`."""

    elapsed_s: float
    """Wall time in which the run had a driver."""
    goodput: float
    """Share of it that was spent on training steps that count."""
    seconds: Mapping[str, float]
    """In the order of the ledger, categories without time included."""

    def share(self, category: str) -> float:
        """Share of the elapsed time; 0 for a category that is not there."""
        return self.seconds.get(category, 0.0) / self.elapsed_s if self.elapsed_s > 0 else 0.0


def time_use(ledger: JsonFields | None) -> TimeUse | None:
    """What a ledger says; None if there is none, or it has no time in it."""
    elapsed_s = number_or_none(ledger, "elapsed_s") if ledger else None
    if not ledger or not elapsed_s:
        return None
    found = fields_of_object(ledger, "seconds")
    seconds = {name: max(0.0, number_or_none(found, name) or 0.0) for name in found}
    return TimeUse(elapsed_s, number_or_none(ledger, "goodput") or 0.0, seconds)
