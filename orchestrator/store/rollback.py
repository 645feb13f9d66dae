"""Which checkpoint a run continues from: the newest one, or after a numeric fault an older one, without some
samples."""

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.checkpoint.format.checkpoint_manifest import MANIFEST, Manifest
from orchestrator.checkpoint.storage.checkpoint_catalog import (
    FoundCheckpoint,
    list_checkpoints,
    newest_valid,
    silent,
    verify_checkpoint,
)
from orchestrator.checkpoint.storage.storage import Storage, StorageError, open_storage
from orchestrator.domain.errors import CheckpointError
from orchestrator.domain.events import CheckpointRejected, Emit, WarningIssued
from orchestrator.domain.policy.numeric import (
    HINT_DIVERGED,
    NumericFault,
    Refusal,
    Skip,
    choose_state,
    refuse,
    skip_range,
)
from orchestrator.domain.run_layout import RunLayout
from orchestrator.spec.job import JobSpec
from orchestrator.store.checkpoint_places import checkpoint_places
from orchestrator.store.skip_file import order_of, read_skips, write_skips

HINT_STOPPED = (
    "its last checkpoint is kept, but the same samples give the same fault: start a new run with a lower train.lr or a "
    "longer train.warmup_steps, or with recovery.on_nan: rollback_and_skip"
)


def resume_point(
    layout: RunLayout, storage: str | None, batch: int, emit: Emit, below: int | None = None
) -> FoundCheckpoint | None:
    """The newest checkpoint of a run that is complete and has seen no sample that the run leaves out; None if there is
    no finished checkpoint. `storage`: `checkpoint.storage` of the spec; `batch`: samples of a global batch; `below`: of
    a step before this one.

    Each newer one is reported. Raises CheckpointError if there are checkpoints and none is usable, StorageError if
    storage does not answer: starting from the beginning would be wrong then.
    """
    order = order_of(batch, read_skips(layout))
    rejected: list[str] = []

    def objection(manifest: Manifest) -> str | None:
        if below is not None and manifest.step >= below:
            return "what was restored from it, or from one before it, was not what had been saved"
        fits = not order.left_out or order.follows(manifest.step, manifest.position)
        return None if fits else "it was saved before the run left samples out, and has seen them"

    def reject(place: str, reason: str) -> None:
        rejected.append(f"{place.rpartition('/')[2]}: {reason}")
        emit(CheckpointRejected(place, reason))

    places = [open_storage(place) for place in checkpoint_places(layout, storage)]
    whole = [found for place in places if (found := newest_valid(place, reject, objection)) is not None]
    found = max(whole, key=lambda each: each.step, default=None)
    if found is None and any(entry.finished for place in places for entry in list_checkpoints(place)):
        raise CheckpointError(
            f"run {layout.run_id} has no complete checkpoint: {'; '.join(rejected)}",
            hint="start a new run with `convoy run`, or restore a copy of a checkpoint",
        )
    return found


@dataclass(frozen=True)
class Rollback:
    """The state to continue from, and the samples to leave out."""

    checkpoint: str | None
    """Directory or URL. None: the state in memory, or from the beginning."""
    from_step: int
    skip: Skip
    in_memory: bool = False
    """The peers' memory holds the state gone back to."""


def answer_fault(
    layout: RunLayout, fault: NumericFault, spec: JobSpec, in_memory: Sequence[int], now_s: float, emit: Emit
) -> Rollback | Refusal:
    """React to a numeric fault as `recovery.on_nan` says, and report it. The caller forms the gang again.

    `in_memory`: steps whose state is in the vaults.
    """
    action = "give_up"
    answer: Rollback | Refusal
    if spec.recovery.on_nan != "rollback_and_skip":
        action, answer = "stop", Refusal(fault.text, HINT_STOPPED)
    else:
        try:
            answer = roll_back(layout, fault, spec, in_memory, now_s, emit)
        except (OSError, StorageError) as error:
            reason = f"{fault.text}, and the rollback cannot be recorded: {error}"
            answer = Refusal(reason, f"make {layout.root} writable, or free space on its disk")
    skip = None
    if isinstance(answer, Rollback):
        action, skip = "rollback", answer.skip
    emit(fault.event(action, skip))
    if skip is not None:
        again = f"from step {skip.from_step}" if skip.from_step else "from the beginning"
        left_out = f"without samples [{skip.first}, {skip.end}) of the order"
        emit(WarningIssued(f"{fault.text}: rolled back, continuing {again} {left_out}"))
    return answer


def roll_back(
    layout: RunLayout, fault: NumericFault, spec: JobSpec, in_memory: Sequence[int], now_s: float, emit: Emit
) -> Rollback | Refusal:
    """Decide which state to return to after `fault`, remove newer checkpoints and record the samples to leave out; or
    return why the run must not roll back. Damaged checkpoints are reported. Raises OSError, StorageError.

    Newer checkpoints are removed first: if the driver is killed in between, the same fault occurs again and is decided
    again.
    """
    before = read_skips(layout)
    refusal = refuse(fault, before, spec.recovery.max_rollbacks)
    if refusal is not None:
        return refusal
    storage = open_storage(layout.checkpoint_place(spec.checkpoint.storage))
    found = _state(storage, fault, before, in_memory, emit)
    if found is None:
        again = bool(before) and layout.checkpoint(before[-1].from_step).is_dir()
        older = " older than the one already restored" if again else ""
        return Refusal(
            f"{fault.text}, and there is no good checkpoint{older} from before the fault",
            f"{HINT_DIVERGED}; a larger checkpoint.keep_last leaves more checkpoints to go back to",
        )
    checkpoint, from_step = found
    start = order_of(fault.count, before).end_position(from_step)
    first, count = skip_range(fault, start, spec.recovery.skip_around)
    skip = Skip(first, count, from_step, now_s, fault)
    for place in checkpoint_places(layout, spec.checkpoint.storage):
        for entry in list_checkpoints(kept := open_storage(place)):
            if entry.step > from_step:  # of a past that is given up; kept, they would be taken for the newest
                kept.remove(entry.name, MANIFEST)
    write_skips(layout, (*before, skip))
    return Rollback(checkpoint, from_step, skip, checkpoint is None and from_step in in_memory)


def _state(
    storage: Storage, fault: NumericFault, before: tuple[Skip, ...], in_memory: Sequence[int], emit: Emit
) -> tuple[str | None, int] | None:
    """The checkpoint chosen, read whole, and its step; None in its place: in memory, or the beginning (step 0).

    None if there is no good one. What the peers' memory holds is of this very run and order: it needs no look.
    """
    order = order_of(fault.count, before)
    entries = list_checkpoints(storage)
    whole = {
        entry.step: entry
        for entry in entries
        if entry.problem is None and entry.manifest is not None and order.follows(entry.step, entry.manifest.position)
    }
    while (step := choose_state(fault, sorted({*whole, *in_memory}), before)) is not None:
        if step in in_memory:
            return None, step
        if step == 0:
            return None if entries else (None, 0)
        try:
            verify_checkpoint(whole[step].name, storage)
        except CheckpointError as error:
            if silent(error):
                raise
            emit(CheckpointRejected(whole.pop(step).place, error.message))
            continue
        return whole[step].place, step
    return None
