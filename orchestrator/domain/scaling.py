"""`convoy scale`: what is asked of a run's driver, and what it says. Pure: values, and whether they may be."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Protocol

from orchestrator.domain.errors import UsageError
from orchestrator.json_values import JsonFields, JsonObject, integer, mapping, number, optional, text
from orchestrator.spec.job import JobSpec
from orchestrator.spec.resources import WorkersRange


class ScaleState(StrEnum):
    """How far a request has come."""

    ACCEPTED = "accepted"
    """The run aims for it from now on."""
    DONE = "done"
    """A step was made with as many workers."""
    REFUSED = "refused"


@dataclass(frozen=True)
class ScaleRequest:
    """Somebody wants another number of workers."""

    id: str
    """Told apart from every other request, of whichever driver."""
    workers: int
    by: str
    """`user@host`."""
    asked_s: float
    """Unix time."""
    driver: JsonFields
    """The driver that it is for, as `run.json` names it: another one that comes later leaves it alone."""
    force: bool = False

    def to_json(self) -> JsonObject:
        return {**asdict(self), "driver": dict(self.driver)}

    @classmethod
    def from_json(cls, value: JsonFields | None) -> "ScaleRequest | None":
        """None where it is no request."""
        if value is None:
            return None
        try:
            return cls(
                id=text(value, "id"),
                workers=integer(value, "workers"),
                by=text(value, "by"),
                asked_s=number(value, "asked_s"),
                driver=mapping(value, "driver"),
                force=value.get("force") is True,
            )
        except ValueError:
            return None


@dataclass(frozen=True)
class ScaleAnswer:
    """What the driver says to a request; a later answer to the same one replaces it."""

    id: str
    workers: int
    state: ScaleState
    message: str
    """For people: what happens now, or why not."""
    step: int | None = None
    """The first one made with as many workers."""

    def to_json(self) -> JsonObject:
        return asdict(self)

    @classmethod
    def from_json(cls, value: JsonFields | None) -> "ScaleAnswer | None":
        """None where it is no answer."""
        if value is None:
            return None
        try:
            return cls(
                id=text(value, "id"),
                workers=integer(value, "workers"),
                state=ScaleState(text(value, "state")),
                message=text(value, "message"),
                step=optional(integer, value, "step"),
            )
        except ValueError:
            return None


class ScaleDesk(Protocol):
    """The driver's side of the exchange."""

    def newest(self) -> ScaleRequest | None:
        """A request that has not been given out yet; None where there is none."""

    def answer(self, answer: ScaleAnswer) -> None:
        """Let whoever asked know."""

    def standing(self) -> int | None:
        """The number that a driver before this one was asked for and accepted."""


def check_workers(spec: JobSpec, workers: int, force: bool) -> None:
    """Whether a run may be asked to have `workers`. Raises UsageError.

    A range in the spec says what the job is known to do: its memory fits with `min`, its price with `max`. Outside it
    only `force` goes. A plain number says what to begin with, no more: every number gives the same losses. In no case
    may there be more workers than samples in a global batch, for some would have nothing to do.
    """
    if workers > spec.train.global_batch:
        raise UsageError(
            f"{workers} workers cannot share a global batch of {spec.train.global_batch}: some would have no sample",
            hint=f"ask for {spec.train.global_batch} at most; the batch itself belongs to the run and stays",
        )
    asked = spec.resources.workers
    if isinstance(asked, WorkersRange) and not asked.min <= workers <= asked.max and not force:
        raise UsageError(
            f"the job's spec says {asked.min} to {asked.max} workers, {workers} were asked for",
            hint="--force goes beyond what the spec says",
        )


def fewest_workers(spec_minimum: int, workers: int) -> int:
    """With how few a run goes on that was asked to have `workers`: what its spec says, or fewer if it was asked to."""
    return min(spec_minimum, workers)
