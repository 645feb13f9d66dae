"""The lease of a run's driver: who may write, and when another driver may take over. Pure.

A lease has a number, its **fencing token**: each driver of a run has a higher one than all drivers before it, and every
record carries the token of the driver that wrote it. The holder adds one to `renewals` every `RENEW_S`. A challenger
that wants the run watches this counter on its own monotonic clock and takes over once the counter has not moved for the
TTL. Clocks of two machines are never compared.

A lease alone does not keep a stopped process from writing when it continues. The token does: readers drop records below
the highest token before them, and vaults and manifests refuse them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

RENEW_S = 2.0
"""From one renewal in a directory to the next."""
BUCKET_RENEW_S = 5.0
"""The same in a bucket, where every renewal is a request that costs money: 17,280 of them a day."""
TTL_S = 20.0
"""Another driver may take over if the counter has not changed for this long. Ten renewals in a directory, four in a
bucket: a garbage collection, a disk that takes seconds to write, or a short stop of the process lose no run. Resuming
on another machine takes this long, once; a driver that is certainly gone is not waited for."""
LOOK_S = 0.5
"""From one look of a challenger to the next."""
LONGEST_GAP_S = 2.0
"""Time between two looks counts up to this much. A challenger that was stopped itself (or whose machine was, and the
holder's with it) has not seen whether the counter moved."""

GENERATIONS_PER_TOKEN = 1 << 20
"""Generations of gangs that one driver can number."""


@dataclass(frozen=True)
class Lease:
    """What a holder writes."""

    holder: str
    """Random id of one driver. It distinguishes two drivers with equal tokens."""
    token: int
    """1 for the first driver of a run; 0 stands for drivers of older versions, which had no lease."""
    renewals: int = 0
    ttl_s: float = TTL_S
    released: bool = False
    """The holder has ended and wants the lease no more."""

    def to_json(self) -> dict[str, str | int | float | bool]:
        """The fields as JSON values."""
        return {
            "holder": self.holder,
            "token": self.token,
            "renewals": self.renewals,
            "ttl_s": self.ttl_s,
            "released": self.released,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> "Lease | None":
        """None if `value` is not a lease."""
        holder, token, renewals = value.get("holder"), value.get("token"), value.get("renewals")
        ttl_s, released = value.get("ttl_s"), value.get("released")
        if not isinstance(holder, str) or not isinstance(token, int) or not isinstance(renewals, int):
            return None
        if not isinstance(ttl_s, int | float) or not isinstance(released, bool):
            return None
        return cls(holder, token, renewals, float(ttl_s), released)


@dataclass(frozen=True)
class Observed:
    """What a challenger has seen of one lease so far."""

    lease: Lease
    still_s: float
    """For how long the counter has not moved, on the challenger's monotonic clock."""
    looked_s: float
    """When it looked last, on that clock."""
    looks: int = 1


def observe(before: Observed | None, lease: Lease, now_s: float) -> Observed:
    """One more look at a lease, at `now_s` on the challenger's monotonic clock."""
    if before is None or before.lease != lease:
        return Observed(lease, 0.0, now_s)
    gap_s = min(max(0.0, now_s - before.looked_s), LONGEST_GAP_S)
    return Observed(lease, before.still_s + gap_s, now_s, before.looks + 1)


class Standing(StrEnum):
    """What a challenger may do."""

    FREE = "free"
    """The lease was given back, or its holder is certainly gone, or the counter stood still for the TTL: take over."""
    HELD = "held"
    """The counter has changed since the first look: a driver has the run."""
    UNKNOWN = "unknown"
    """Neither yet: look again."""


def standing(first: Lease, seen: Observed, holder_gone: bool) -> Standing:
    """The challenger's decision. `first`: the lease at its first look; `holder_gone`: two signals of the holder's own
    machine (no process of that id, or one that started at another time) say that the holder does not exist any more.
    """
    if seen.lease.released or holder_gone or seen.still_s >= seen.lease.ttl_s:
        return Standing.FREE
    return Standing.HELD if seen.lease != first else Standing.UNKNOWN


def is_lost(own: Lease, highest_token: int, found: Lease | None) -> bool:
    """Whether a holder must end: a higher token exists, or the lease with its token (`found`; None if it cannot be
    read) is another driver's."""
    return highest_token > own.token or (found is not None and found.holder != own.holder)


def next_token(known: Iterable[int]) -> int:
    """The token of the next driver, above all that are known."""
    return max(known, default=0) + 1


def first_generation(token: int) -> int:
    """Generations of the gangs of the driver with `token` are above this number and below that of the next token.

    So a generation number orders gangs over all drivers of a run, and who refuses a lower one refuses every gang of
    every earlier driver. Older versions counted from 0: token 0.
    """
    return token * GENERATIONS_PER_TOKEN


def token_of(generation: int) -> int:
    """The token of the driver that formed a generation."""
    return generation // GENERATIONS_PER_TOKEN


LEASE = "lease"
"""Key of the token in a record. Records without it are of older versions: token 0."""


class LeaseOrder:
    """Which records of a file count if several drivers have written into it. Takes their tokens in the file's order."""

    def __init__(self) -> None:
        self.highest = 0

    def counts(self, token: int) -> bool:
        """False for a record with a lower token than one before it: its driver had lost the run when it wrote."""
        if token < self.highest:
            return False
        self.highest = token
        return True


def token_in(record: Mapping[str, object]) -> int:
    """The token of a record; 0 if it has none."""
    value = record.get(LEASE)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
