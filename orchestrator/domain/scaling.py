"""`convoy scale`: what is asked of a run's driver, and what it says. Pure: values, and whether they may be."""

from dataclasses import asdict, dataclass
from typing import Protocol

from orchestrator.domain.errors import UsageError
from orchestrator.domain.events import ScaleState
from orchestrator.domain.queue.grant import GrantDesk
from orchestrator.json_values import JsonFields, JsonObject, integer, mapping, number, optional, text
from orchestrator.spec.job import JobSpec
from orchestrator.spec.resources import WorkersRange


@dataclass(frozen=True)
class ScaleRequest:
    """A request for another number of workers."""

    id: str
    """Unique among the requests to all drivers."""
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
        """None if it is no request."""
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
    """The driver's answer to a request; a later answer to the same request replaces it."""

    id: str
    workers: int
    state: ScaleState
    message: str
    """As text: what happens now, or why the request is refused."""
    step: int | None = None
    """The first one made with as many workers."""

    def to_json(self) -> JsonObject:
        return asdict(self)

    @classmethod
    def from_json(cls, value: JsonFields | None) -> "ScaleAnswer | None":
        """None if it is no answer."""
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

    @property
    def grants(self) -> GrantDesk | None:
        """A server decides how many workers the run has, and where; None: it takes requests."""

    def newest(self) -> ScaleRequest | None:
        """A request that has not been given out yet; None if there is none."""

    def answer(self, answer: ScaleAnswer) -> None:
        """Send an answer to the requester."""

    def standing(self) -> int | None:
        """The number that an earlier driver accepted."""


def check_workers(spec: JobSpec, workers: int, force: bool) -> None:
    """Whether a run may be asked to have `workers`. Raises UsageError.

    A range in the spec states what the job supports: its memory fits with `min`, its price with `max`. Numbers outside
    it need `force`. A plain number is only the initial one: every number gives the same losses. There can never be more
    workers than samples in a global batch.
    """
    if workers > spec.train.global_batch:
        raise UsageError(
            f"{workers} workers cannot share a global batch of {spec.train.global_batch}: some would have no samples",
            hint=f"request at most {spec.train.global_batch}; the global batch cannot change within a run",
        )
    asked = spec.resources.workers
    if isinstance(asked, WorkersRange) and not asked.min <= workers <= asked.max and not force:
        raise UsageError(
            f"the job's spec allows {asked.min} to {asked.max} workers, {workers} were requested",
            hint="--force allows a number outside this range",
        )


def fewest_workers(spec_minimum: int, workers: int) -> int:
    """The minimum for a run that was requested to have `workers`: that of its spec, or fewer if fewer were
    requested."""
    return min(spec_minimum, workers)
