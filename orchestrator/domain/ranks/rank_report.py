"""What one rank reports of one optimizer step."""

from dataclasses import dataclass, field

from orchestrator.json_values import JsonFields, JsonObject, integer, mapping, number, optional


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
    """Seconds of a step's phases that one rank was in collectives: waiting for other ranks, and the transfer. With NCCL
    the device waits; it is measured in some steps alone (`train.collectives.device_spans`) and zero in the others."""

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

    @property
    def own_times_s(self) -> tuple[float, float, float, float]:
        """Seconds of data, forward, backward and optimizer without what the rank waited in collectives.

        On a GPU the waits of the device are measured in some steps only, so only phases without collectives count: data
        and forward.
        With ZeRO stage 3 forward has some, too, and a slow GPU can go unnoticed there.
        """
        phases, waits = self.phases, self.waits
        if self.memory.allocated_bytes is not None:
            return (phases.data_wait_s, phases.forward_s, 0.0, 0.0)
        return (
            phases.data_wait_s,
            max(0.0, phases.forward_s - waits.forward_s),
            max(0.0, phases.backward_s - waits.backward_s),
            max(0.0, phases.optimizer_s - waits.optimizer_s),
        )

    def to_json(self) -> JsonObject:
        """A JSON object; the reverse of `from_json`."""
        phases, waits, memory = dict(vars(self.phases)), dict(vars(self.waits)), dict(vars(self.memory))
        shares = {"rank": self.rank, "samples": self.samples, "tokens": self.tokens}
        return {**shares, "phases": phases, "memory": memory, "waits": waits}

    @classmethod
    def from_json(cls, value: JsonFields) -> "RankReport":
        """Raises JsonShapeError if a field is missing. Waits may be missing: an early version did not measure them."""
        phases, memory = mapping(value, "phases"), mapping(value, "memory")
        waits = optional(mapping, value, "waits") or {}
        return cls(
            rank=integer(value, "rank"),
            samples=integer(value, "samples"),
            tokens=integer(value, "tokens"),
            phases=PhaseTimes(
                data_wait_s=number(phases, "data_wait_s"),
                forward_s=number(phases, "forward_s"),
                backward_s=number(phases, "backward_s"),
                optimizer_s=number(phases, "optimizer_s"),
                checkpoint_s=optional(number, phases, "checkpoint_s") or 0.0,
                snapshot_s=optional(number, phases, "snapshot_s") or 0.0,
            ),
            memory=RankMemory(
                rss_bytes=integer(memory, "rss_bytes"),
                peak_rss_bytes=integer(memory, "peak_rss_bytes"),
                allocated_bytes=optional(integer, memory, "allocated_bytes"),
                reserved_bytes=optional(integer, memory, "reserved_bytes"),
                peak_allocated_bytes=optional(integer, memory, "peak_allocated_bytes"),
            ),
            waits=CollectiveTimes(*(optional(number, waits, name) or 0.0 for name in _WAITS)),
        )


_WAITS = ("forward_s", "backward_s", "optimizer_s")
