"""The lease of a run's driver, from the question who drives the run to its end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Event as Flag

from orchestrator.checkpoint.storage.storage import Storage, StorageLimits, is_url, open_storage
from orchestrator.domain.errors import LeaseLostError, UsageError
from orchestrator.domain.events import Emit, Event, Observer, WarningIssued
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport
from orchestrator.store.lease.bucket_record import BucketRecord, refresh
from orchestrator.store.lease.lease_challenge import Challenge, Opening
from orchestrator.store.lease.lease_places import LeaseBucket, LeaseDirectory, LeasePlace
from orchestrator.store.lease.run_lease import RunLease

LIMITS = StorageLimits(connect_s=3.0, request_s=5.0, retries=1, retry_s=5.0)
"""For renewals in a bucket: one that takes longer is worth less than the next one."""


def nothing(error: LeaseLostError) -> None:
    """Leaves it at asking the run to stop."""


@dataclass(frozen=True)
class LeaseChoice:
    """What whoever starts a driver decides about its lease."""

    take_over: bool = False
    """Do not wait for the lease of a driver that seems to be gone: the user knows that it is."""
    on_lost: Callable[[LeaseLostError], None] = field(default=nothing)
    """Called once if another driver has taken the run over, besides that the run is asked to stop. A process that can
    should end itself and all it has started: its workers train for nothing."""


class WhileHeld:
    """An observer that is told only while this driver has the run: one that writes into the run's directory."""

    def __init__(self, observer: Observer, lease: RunLease) -> None:
        self._observer, self._lease = observer, lease

    def on_event(self, event: Event) -> None:
        """Pass it on."""
        if self._lease.held():
            self._observer.on_event(event)

    def on_step(self, report: StepReport) -> None:
        """Pass it on."""
        if self._lease.held():
            self._observer.on_step(report)


def lease_of_new_run(layout: RunLayout, choice: LeaseChoice, stop: Flag) -> RunLease:
    """The first lease of a run, in its directory. Raises UsageError."""
    return _taken(layout, [LeaseDirectory(layout.root)], Opening(0), choice, stop)


def settle(layout: RunLayout, storage: str | None, choice: LeaseChoice, emit: Emit, stop: Flag) -> Opening:
    """Wait until the run may be taken over. If its newest driver was elsewhere, bring what that one has recorded.

    Raises UsageError if somebody drives it, StorageError if its bucket does not answer, KeyboardInterrupt for a stop.
    """
    places = _places(layout, storage)
    challenge = Challenge(layout, places, wait=stop.wait)
    try:
        opening = challenge.settle(choice.take_over, lambda message: emit(WarningIssued(message)))
        if len(places) > 1 and LeaseDirectory(layout.root).highest() < opening.token:
            refresh(layout, _bucket(layout, storage, StorageLimits()))
    except OSError as error:
        raise UsageError(f"the lease of run {layout.run_id} cannot be read: {error}") from error
    return opening


def lease_of_resumed_run(
    layout: RunLayout, storage: str | None, opening: Opening, choice: LeaseChoice, stop: Flag
) -> RunLease:
    """Take the run over. Raises UsageError if another driver was faster, StorageError."""
    return _taken(layout, _places(layout, storage), opening, choice, stop)


def keep_in_bucket(layout: RunLayout, storage: str | None, lease: RunLease, new: bool) -> list[BucketRecord]:
    """With checkpoints in a bucket: hold the lease there too (`new`: of a run that is not there yet), and keep a copy
    of the run's record there. None without a bucket."""
    if storage is None or not is_url(storage):
        return []
    if new:
        lease.extend(LeaseBucket(_bucket(layout, storage, LIMITS)))
    return [BucketRecord(layout, _bucket(layout, storage, StorageLimits()), lease.held)]


def _places(layout: RunLayout, storage: str | None) -> list[LeasePlace]:
    """The bucket first: it decides between drivers on several machines."""
    directory = LeaseDirectory(layout.root)
    if storage is None or not is_url(storage):
        return [directory]
    return [LeaseBucket(_bucket(layout, storage, LIMITS)), directory]


def _bucket(layout: RunLayout, storage: str | None, limits: StorageLimits) -> Storage:
    return open_storage(layout.checkpoint_place(storage), limits)


def _taken(
    layout: RunLayout, places: Sequence[LeasePlace], opening: Opening, choice: LeaseChoice, stop: Flag
) -> RunLease:
    def on_lost(error: LeaseLostError) -> None:
        stop.set()
        choice.on_lost(error)

    try:
        return RunLease(layout.run_id, places, opening, on_lost)
    except OSError as error:
        raise UsageError(
            f"the lease of run {layout.run_id} cannot be written: {error}", hint="the run's directory must be writable"
        ) from error
