"""From what training continues: the memory of the nodes, storage, or the beginning."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.checkpoint.storage.checkpoint_catalog import list_checkpoints
from orchestrator.checkpoint.storage.storage import open_storage
from orchestrator.checkpoint.survey.inventory import WholeStep
from orchestrator.domain.errors import CheckpointError
from orchestrator.domain.events import CheckpointRejected
from orchestrator.domain.policy.restore_choice import RestoreFacts, Superseded, choose_state_in_memory
from orchestrator.domain.session import PeerState, ShardPlace
from orchestrator.run.run_context import RunContext
from orchestrator.run.run_progress import RunProgress
from orchestrator.store.checkpoint_places import checkpoint_places
from orchestrator.store.rollback import Rollback, resume_point


@dataclass(frozen=True)
class RestorePoint:
    """A state that training continues from."""

    step: int = 0
    peers: PeerState | None = None
    """In the vaults."""
    checkpoint: str | None = None
    """Directory or URL. Without this and `peers`: the beginning."""

    @property
    def source(self) -> str:
        """For events: vaults, storage or beginning."""
        return "vaults" if self.peers is not None else "storage" if self.checkpoint is not None else "beginning"


class RestorePoints:
    """Finds them, and remembers which must not be used any more."""

    def __init__(self, run: RunContext, progress: RunProgress, survey: Callable[[], Sequence[WholeStep]]) -> None:
        """`survey`: the steps that the vaults hold completely, newest first."""
        self._run, self._progress, self._survey = run, progress, survey
        self._below: int | None = None
        """Checkpoints from this step on did not hold what had been saved."""
        self._superseded: Superseded | None = None

    def newest(self, total_steps: int) -> RestorePoint:
        """The newest complete state of the vaults, or the newest complete checkpoint if that is newer.

        Raises CheckpointError if checkpoints exist and none is usable, or if storage does not answer.
        """
        progress = self._progress
        facts = RestoreFacts(progress.saved_step, progress.furthest, progress.records)
        state = choose_state_in_memory(self.in_memory(), facts)
        if state is None:
            return self.newest_checkpoint()
        found = RestorePoint(state.step, state)
        if state.step < total_steps:
            return found
        # No step is left. The export is made from a checkpoint, if there is one.
        return self._stored(state.step) or found

    def newest_checkpoint(self) -> RestorePoint:
        """The newest usable checkpoint, with an event for each newer one that is not; the beginning if there is none.

        Raises CheckpointError if there are some and none is usable, or if storage does not answer.
        """
        run, spec = self._run, self._run.spec
        found = resume_point(run.layout, spec.checkpoint.storage, spec.train.global_batch, run.emit, self._below)
        if found is None:
            return RestorePoint()
        self._progress.saved_step = found.step
        return RestorePoint(found.step, None, found.place)

    def in_memory(self) -> list[PeerState]:
        """What the vaults hold completely, newest first."""
        states = [
            PeerState(
                whole.generation,
                whole.step,
                tuple(ShardPlace(rank, vaults) for rank, vaults in enumerate(whole.places)),
            )
            for whole in self._survey()
        ]
        superseded = self._superseded
        return [state for state in states if superseded is None or not superseded.covers(state)]

    def distrust(self, peers: PeerState | None, checkpoint: str | None, reason: str) -> None:
        """The restored state was not the one that was saved: do not use it again, nor others of its tier."""
        if peers is not None:
            newest = max((state.generation for state in self.in_memory()), default=0)
            self._superseded = Superseded(max(newest, peers.generation), -1)
        else:
            self._below = self._progress.saved_step
        place = "vaults" if peers is not None else checkpoint or "beginning"
        self._run.emit(CheckpointRejected(place, reason))

    def roll_back(self, rollback: Rollback) -> RestorePoint:
        """The state to go back to. States of later steps must not be used any more."""
        states = self.in_memory()
        found = RestorePoint(rollback.from_step, None, rollback.checkpoint)
        if rollback.in_memory:
            state = next(state for state in states if state.step == rollback.from_step)
            found = RestorePoint(state.step, state)
        self._superseded = Superseded(max((state.generation for state in states), default=0), rollback.from_step)
        self._progress.rolled_back(rollback.from_step)
        return found

    def _stored(self, step: int) -> RestorePoint | None:
        """The checkpoint of a step, verified; None if there is no usable one, or storage does not answer.

        Storage is asked: the event that it was saved may be lost with the worker that saved it.
        """
        run = self._run
        try:
            places = checkpoint_places(run.layout, run.spec.checkpoint.storage)
            if all(each.step != step for place in places for each in list_checkpoints(open_storage(place))):
                return None
            found = self.newest_checkpoint()
        except CheckpointError:
            return None
        return found if found.step == step else None
