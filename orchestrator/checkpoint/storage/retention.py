"""Which checkpoints may be removed. Pure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.checkpoint.format.checkpoint_manifest import Manifest

TRAINING_LOSS = "loss"
VALIDATION_LOSS = "validation_loss"
"""Keys of a manifest's `extra`."""


@dataclass(frozen=True)
class Rule:
    """The retention rule: a checkpoint is kept if any part of the rule selects it."""

    keep_last: int
    """Number of the newest ones."""
    keep_every: int | None = None
    """Steps that are multiples of this."""
    keep_best: int | None = None
    """Number of those with the lowest loss."""

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
    """Validation loss of its step, if it was measured there."""

    @classmethod
    def of(cls, step: int, manifest: Manifest | None) -> "Candidate":
        """The candidate that a look at its manifest gives."""
        if manifest is None:
            return cls(step, False)
        return cls(step, True, _number(manifest.extra, TRAINING_LOSS), _number(manifest.extra, VALIDATION_LOSS))


def which_to_remove(candidates: Collection[Candidate], rule: Rule, valid_step: int | None) -> list[int]:
    """Steps to remove, newest first.

    `valid_step`: the newest checkpoint known to be valid, which is never removed. Unfinished ones are removed if they
    are older than the newest finished one; newer ones may be in progress.
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

    By validation loss if any has one: the two losses cannot be compared, and those without are not ranked then.
    """
    measured = [(c.validation_loss, -c.step) for c in candidates if c.validation_loss is not None]
    if not measured:
        measured = [(c.loss, -c.step) for c in candidates if c.loss is not None]
    return [-step for _, step in sorted(measured)[:count]]


def _number(values: Mapping[str, object], key: str) -> float | None:
    value = values.get(key)
    # NaN is what no comparison is true of.
    return float(value) if isinstance(value, int | float) and value == value else None
