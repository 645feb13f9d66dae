"""May this process drive a run? Looks at its leases, waits for the TTL if need be, and takes over. Writes nothing until
it does."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Event

from orchestrator.atomic_files import read_json
from orchestrator.checkpoint.storage.storage import StorageError
from orchestrator.domain.errors import LeaseLostError, UsageError
from orchestrator.domain.lease import LOOK_S, TTL_S, Lease, Observed, Standing, next_token, observe, standing, token_in
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.run_states import FINAL_STATES
from orchestrator.store.driver_process import DriverProcess
from orchestrator.store.lease.lease_places import LeaseEntry, LeasePlace
from orchestrator.store.run_store import parse_state

TELL_AFTER_S = 3.0
"""A challenger that has waited this long says what it waits for."""


@dataclass(frozen=True)
class Opening:
    """A run that may be taken over: the highest token there was when that was decided."""

    token: int


@dataclass
class _Watched:
    """One place's entry of the highest token, as a challenger sees it."""

    first: LeaseEntry
    seen: Observed
    last: LeaseEntry = field(init=False)

    def __post_init__(self) -> None:
        self.last = self.first

    def look(self, entry: LeaseEntry, now_s: float) -> None:
        self.seen, self.last = observe(self.seen, entry.lease, now_s), entry

    def standing(self) -> Standing:
        driver = self.last.driver
        return standing(self.first.lease, self.seen, driver is not None and driver.alive() is False)


class Challenge:
    """Watches the leases of one run."""

    def __init__(
        self,
        layout: RunLayout,
        places: Sequence[LeasePlace],
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        """`clock`: monotonic; `wait` sleeps, and says whether a stop was asked for meanwhile."""
        self._layout, self._places, self._clock = layout, places, clock
        self._wait = wait or Event().wait

    def settle(self, take_over: bool, tell: Callable[[str], None]) -> Opening:
        """Wait until the run is free, at most for the TTL (and as long again for each driver that comes meanwhile).

        `take_over`: do not wait, the user knows that the holder is gone. `tell` is told once if it takes long. Raises
        UsageError if somebody drives the run, KeyboardInterrupt if a stop was asked for, OSError or StorageError if a
        place does not answer.
        """
        highest = self._highest()
        if take_over:
            return Opening(highest)
        if highest == 0:
            self._require_no_driver_without_lease()
            return Opening(0)
        if self._has_ended(highest):
            return Opening(highest)
        watched: list[_Watched | None] = [None for _ in self._places]
        began_s, told = self._clock(), False
        while True:
            now_s = self._clock()
            if self._highest() != highest:
                raise self._is_driven("another driver has just taken it")
            found = self._look(highest, watched, now_s)
            if all(each is Standing.FREE for each in found):
                return Opening(highest)
            if any(each is Standing.HELD for each in found):
                raise self._is_driven(f"{_holder(watched)} drives it and renews its lease")
            if not told and now_s - began_s >= TELL_AFTER_S:
                told = True
                tell(
                    f"run {self._layout.run_id} is held by {_holder(watched)}, which does not renew its lease: it is "
                    f"taken over after {TTL_S:g} s without a renewal (--take-over: at once)"
                )
            if self._wait(LOOK_S):
                raise KeyboardInterrupt

    def _look(self, token: int, watched: list[_Watched | None], now_s: float) -> list[Standing]:
        found = []
        for number, place in enumerate(self._places):
            if place.highest() < token:
                continue  # an earlier driver's: it had other places
            entry = place.read(token) or LeaseEntry(Lease("", token, -1), None)  # being written, or damaged
            if self._is_own(entry):
                raise self._is_driven("this very process drives it")
            known = watched[number]
            if known is None:
                watched[number] = known = _Watched(entry, observe(None, entry.lease, now_s))
            else:
                known.look(entry, now_s)
            found.append(known.standing())
        holders = {each.last.lease.holder: each for each in watched if each is not None}
        if len(holders) == 1 and Standing.FREE in found:
            return [Standing.FREE]  # what one place knows of the holder is true everywhere
        return found

    def _is_own(self, entry: LeaseEntry) -> bool:
        return entry.driver == DriverProcess.current() and not entry.lease.released

    def _highest(self) -> int:
        return max((place.highest() for place in self._places), default=0)

    def _has_ended(self, token: int) -> bool:
        """Whether the driver with the highest token has brought the run to a final state."""
        value = read_json(self._layout.state) or {}
        return parse_state(value.get("state")) in FINAL_STATES and token_in(value) == token

    def _require_no_driver_without_lease(self) -> None:
        """A run of an older version: whether its driver lives can be told on its own machine only."""
        value = read_json(self._layout.state) or {}
        driver = DriverProcess.from_json(value.get("driver"))
        if parse_state(value.get("state")) in FINAL_STATES or driver is None or driver.alive() is False:
            return
        if driver == DriverProcess.current():
            raise self._is_driven("this very process drives it")
        who = f"process {driver.pid} on {driver.host}"
        if driver.alive():
            raise self._is_driven(f"{who} drives it")
        raise UsageError(
            f"run {self._layout.run_id} was driven by {who}, by a version of Convoy that keeps no lease: whether it "
            "still is cannot be told from here",
            hint="if that driver is gone: add --take-over",
        )

    def _is_driven(self, why: str) -> UsageError:
        value = read_json(self._layout.state) or {}
        return UsageError(
            f"run {self._layout.run_id} is {value.get('state', 'active')}: {why}",
            hint="stop that driver first (Ctrl-C there), or wait until it ends; --take-over ends it",
        )


def _holder(watched: Sequence[_Watched | None]) -> str:
    drivers = [each.last.driver for each in watched if each is not None and each.last.driver is not None]
    return f"process {drivers[0].pid} on {drivers[0].host}" if drivers else "a driver"


def take(places: Sequence[LeasePlace], opening: Opening, holder: str, run_id: str) -> LeaseEntry:
    """Create the lease with the next token in all places, the first of which decides. Raises UsageError if somebody
    else was faster, OSError or StorageError if a place does not answer."""
    entry = LeaseEntry(Lease(holder, next_token([opening.token])), DriverProcess.current())
    made: list[LeasePlace] = []
    for place in places:
        if place.highest() > opening.token or not place.create(entry):
            _give_back(made, entry)
            raise UsageError(
                f"run {run_id} has just been taken over by another driver", hint="`convoy runs` shows its state"
            )
        made.append(place)
    return entry


def _give_back(places: Sequence[LeasePlace], entry: LeaseEntry) -> None:
    """Mark a lease that will not be used as released. Raises OSError, StorageError."""
    lease = entry.lease
    released = Lease(lease.holder, lease.token, lease.renewals + 1, lease.ttl_s, released=True)
    for place in places:
        place.write(LeaseEntry(released, entry.driver))


def lost_to(place: LeasePlace, run_id: str, token: int) -> LeaseLostError:
    """What a driver with `token` says when it finds a higher one in a place."""
    highest, who = token, "another driver"
    with contextlib.suppress(OSError, StorageError):
        highest = place.highest()
        entry = place.read(highest)
        if entry is not None and entry.driver is not None:
            who = f"process {entry.driver.pid} on {entry.driver.host}"
    return LeaseLostError(
        f"run {run_id} was taken over by {who} (lease {highest}; this driver had lease {token}): this driver has ended "
        "and writes nothing more",
        hint="a driver that does not renew its lease for too long loses its run; `convoy show` shows the run",
    )
