"""The lease of this process on a run: renewed in the background as long as the run has this driver."""

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from orchestrator.checkpoint.storage.storage import StorageError
from orchestrator.domain.errors import LeaseLostError
from orchestrator.domain.lease import RENEW_S, is_lost
from orchestrator.lasting_thread import LastingThread
from orchestrator.store.lease.lease_challenge import Opening, lost_to, take
from orchestrator.store.lease.lease_places import LeaseEntry, LeasePlace

STALE_S = 3 * RENEW_S
"""A driver that has renewed its lease nowhere for this long (it was stopped) looks whether it still has it before it
writes anything."""
CLOSE_S = 1.0
"""How long the end of a run may wait for its lease to be given back."""


class RunLease:
    """Holds the lease until `close`. Thread-safe."""

    def __init__(
        self, run_id: str, places: Sequence[LeasePlace], opening: Opening, on_lost: Callable[[LeaseLostError], None]
    ) -> None:
        """Take the lease after `opening` in all places, and renew it from now on. `on_lost` is called once, by whatever
        thread finds that a later driver has the run. Raises what `take` raises.
        """
        self._run_id, self._on_lost = run_id, on_lost
        self._entry = take(places, opening, secrets.token_hex(8), run_id)
        self.token = self._entry.lease.token
        self._ending, self._lock = threading.Event(), threading.Lock()
        self._lost: LeaseLostError | None = None
        self._keepers: list[_Keeper] = []
        self._threads: list[LastingThread] = []
        for place in places:
            self._keep(place, exists=True)

    @property
    def lost(self) -> LeaseLostError | None:
        """Why this driver must end; None if it holds the lease, as far as it knows."""
        return self._lost

    def extend(self, place: LeasePlace) -> None:
        """Hold the lease in one more place, of a new run, which nobody knows there yet. Does not wait."""
        self._keep(place, exists=False)

    def held(self) -> bool:
        """Whether this driver may write. Cheap, unless the last renewal is long ago: then it looks first. A place that
        does not answer takes nothing away: only a higher token does."""
        now_s = time.monotonic()
        if self._lost is None and all(now_s - keeper.renewed_s > STALE_S for keeper in self._keepers):
            for keeper in self._keepers:
                keeper.check_now()
        return self._lost is None

    def close(self) -> None:
        """Give the lease back, so that the next driver need not wait. Waits `CLOSE_S` at most. Idempotent."""
        self._ending.set()
        deadline = time.monotonic() + CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            thread.stop()

    def lose(self, place: LeasePlace) -> None:
        """A higher token was found in a place: end. Called by the keepers."""
        with self._lock:
            if self._lost is not None:
                return
            self._lost = lost_to(place, self._run_id, self.token)
        self._on_lost(self._lost)

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end; whether it has come. Called by the keepers."""
        return self._ending.wait(timeout_s)

    def _keep(self, place: LeasePlace, exists: bool) -> None:
        keeper = _Keeper(self, place, self._entry, exists)
        self._keepers.append(keeper)
        self._threads.append(LastingThread(f"lease in {place.name}", keeper.turn))


class _Keeper:
    """Renews the lease in one place."""

    def __init__(self, of: RunLease, place: LeasePlace, entry: LeaseEntry, exists: bool) -> None:
        self._of, self.place, self._entry, self._exists = of, place, entry, exists
        self._renewing = threading.Lock()
        self.renewed_s = time.monotonic()

    def turn(self) -> bool:
        """One renewal, or the end."""
        if not self._exists:
            self._exists = self.place.create(self._entry)
            if not self._exists:
                self._of.lose(self.place)
        ending = self._of.wait(self.place.renew_s)
        if self._of.lost is not None:
            return False
        self._renew(released=ending)
        return not ending

    def check_now(self) -> None:
        """Look whether the lease was lost, and renew it if not."""
        try:
            self._renew(released=False)
        except (OSError, StorageError):
            self.renewed_s = time.monotonic() - STALE_S / 2  # it does not answer: not before every record

    def _renew(self, released: bool) -> None:
        with self._renewing:
            own = self._entry.lease
            found = self.place.read(own.token)
            if is_lost(own, self.place.highest(), found.lease if found is not None else None):
                self._of.lose(self.place)
                return
            renewed = replace(own, renewals=own.renewals + 1, released=released)
            self._entry = replace(self._entry, lease=renewed)
            self.place.write(self._entry)
            self.renewed_s = time.monotonic()
