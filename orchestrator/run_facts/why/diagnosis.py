"""What bounds the speed of a run: all rules applied to its read model, the largest share first. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.json_values import JsonObject
from orchestrator.run_facts.run_model import RunFacts
from orchestrator.run_facts.why import run_rules, step_rules
from orchestrator.run_facts.why.bottleneck import Bottleneck

RULES: tuple[Callable[[RunFacts], Bottleneck | None], ...] = (
    step_rules.data_wait,
    step_rules.slow_rank,
    step_rules.communication,
    step_rules.micro_batch,
    step_rules.padding,
    step_rules.snapshots,
    run_rules.evaluation,
    run_rules.checkpoints,
    run_rules.recoveries,
    run_rules.waiting,
    run_rules.start_up,
)
FEWEST_STEPS = 5
"""With fewer, the first steps, which warm up, hide the others."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found about a run."""

    wall_s: float
    """The wall clock that shares are of, in seconds."""
    steps: int
    """Steps that count."""
    found: tuple[Bottleneck, ...]
    """The largest share first. Shares may overlap: small micro steps and their padding are the same time."""
    not_judged: tuple[str, ...]
    """What could not be judged, and why."""

    @property
    def summary(self) -> str:
        """One sentence."""
        if self.found:
            return f"{self.found[0].headline}: {self.found[0].figure}"
        if self.steps < FEWEST_STEPS:
            return f"too few steps to judge: {self.steps}"
        return "nothing stands out"

    def to_json(self) -> JsonObject:
        """A JSON object."""
        return {
            "wall_s": self.wall_s,
            "steps": self.steps,
            "summary": self.summary,
            "found": [each.to_json() for each in self.found],
            "not_judged": list(self.not_judged),
        }


def diagnose(run: RunFacts) -> Diagnosis:
    """Apply every rule."""
    found = [bottleneck for rule in RULES if (bottleneck := rule(run)) is not None]
    found.sort(key=lambda each: each.share, reverse=True)
    return Diagnosis(run.wall_s, run.steps.series.totals.steps, tuple(found), _not_judged(run))


def _not_judged(run: RunFacts) -> tuple[str, ...]:
    totals, last = run.steps.series.totals, run.steps.series.last
    if last is None:
        return ()
    reasons = []
    if not run.steps.complete:
        reasons.append("the steps: reading them took too long")
    if totals.positions == 0:
        reasons.append("padding: the version of Convoy that recorded the run did not count it")
    if run.events.micro_step is None:
        reasons.append("the micro batch: its fixed cost was not measured")
    if totals.collective_steps_s == 0.0:
        reasons.append("communication: it was not measured on the GPUs")
    return tuple(reasons)
