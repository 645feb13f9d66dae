"""What a rule finds: something that takes a share of a run's wall clock, and what to do about it."""

from dataclasses import dataclass

from orchestrator.json_values import JsonObject
from orchestrator.run_facts.quantity_text import duration


@dataclass(frozen=True)
class Bottleneck:
    """Something that bounds the speed of a run."""

    name: str
    """Of the rule that found it. It never changes: other programs read it."""
    share: float
    """Share of the wall clock that it takes, 0 to 1."""
    seconds: float
    """The same in seconds of wall clock."""
    headline: str
    """What it is, without the figure: a clause that can stand alone."""
    evidence: tuple[str, ...]
    """Recorded figures that show it."""
    advice: tuple[str, ...]
    """What to do, the most promising first."""

    @property
    def figure(self) -> str:
        """`31% of the wall clock (2:04)`."""
        return f"{self.share:.0%} of the wall clock ({duration(self.seconds)})"

    def to_json(self) -> JsonObject:
        """A JSON object."""
        return {**vars(self), "evidence": list(self.evidence), "advice": list(self.advice)}


def bottleneck(
    name: str, seconds: float, wall_s: float, headline: str, evidence: tuple[str, ...], advice: tuple[str, ...]
) -> Bottleneck:
    """With the share of `wall_s`, which is not 0; at most all of it."""
    taken_s = min(max(0.0, seconds), wall_s)
    return Bottleneck(name, taken_s / wall_s, taken_s, headline, evidence, advice)
