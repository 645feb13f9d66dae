"""Which checkpoints may go. Pure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.checkpoint.format.checkpoint_manifest import Manifest

TRAINING_LOSS = "loss"
VALIDATION_LOSS = "validation_loss"
"""Keys of a manifest's `extra`."""


@dataclass(frozen=True)
class Rule:
    """What is kept: a checkpoint that any part of the rule names stays."""

    keep_last: int
    """The newest so many."""
    keep_every: int | None = None
    """Those of steps that are multiples of this."""
    keep_best: int | None = None
    """The so many with the lowest loss."""

    def __post_init__(self) -> None:
        if self.keep_last < 1:
            raise ValueError(f"at least one checkpoint must be kept, not {self.keep_last}")


@dataclass(frozen=True)
class Candidate:
    """A checkpoint as far as the rule minds it. `finished`: it has a manifest that can be read."""

    step: int
    finished: bool
    loss: float | None = None
    """Training loss of its step."""
    validation_loss: float | None = None
    """Validation loss of its step, where one was measured at it."""

    @classmethod
    def of(cls, step: int, manifest: Manifest | None) -> "Candidate":
        """The candidate that a look at its manifest gives."""
        if manifest is None:
            return cls(step, False)
        return cls(step, True, _number(manifest.extra, TRAINING_LOSS), _number(manifest.extra, VALIDATION_LOSS))


def which_to_remove(candidates: Collection[Candidate], rule: Rule, valid_step: int | None) -> list[int]:
    """Steps to remove, newest first.

    `valid_step` is the newest checkpoint known to hold, which is never removed. What is not finished goes where it is
    older than the newest finished one: what is newer may be on its way.
    """
    finished = sorted((c for c in candidates if c.finished), key=lambda c: -c.step)
    keep = {c.step for c in finished[: rule.keep_last]}
    if rule.keep_every is not None:
        keep |= {c.step for c in finished if c.step % rule.keep_every == 0}
    if rule.keep_best is not None:
        keep |= set(best(finished, rule.keep_best))
    if valid_step is not None:
        keep.add(valid_step)
    newest = finished[0].step if finished else -1
    return sorted((c.step for c in candidates if c.step not in keep and c.step <= newest), reverse=True)


def best(candidates: Sequence[Candidate], count: int) -> list[int]:
    """Steps of the lowest loss, best first; of equal ones the newer.

    By validation loss where any has one: the two losses cannot be compared, and the other ones are not ranked then.
    """
    measured = [(c.validation_loss, -c.step) for c in candidates if c.validation_loss is not None]
    if not measured:
        measured = [(c.loss, -c.step) for c in candidates if c.loss is not None]
    return [-step for _, step in sorted(measured)[:count]]


def _number(values: Mapping[str, object], key: str) -> float | None:
    value = values.get(key)
    # NaN is what no comparison is true of.
    return float(value) if isinstance(value, int | float) and value == value else None
