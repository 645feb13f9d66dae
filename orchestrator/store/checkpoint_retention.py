"""Keeping the run directory's checkpoints to what the spec says, from the driver's side."""

from orchestrator.checkpoint.storage.checkpoint_catalog import retain
from orchestrator.checkpoint.storage.retention import Rule
from orchestrator.checkpoint.storage.storage import StorageError
from orchestrator.domain.events import CheckpointFailed, CheckpointSaved, CheckpointStarted, Event
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport
from orchestrator.spec.resources import CheckpointSpec


class Retention:
    """Observer that removes old checkpoints when a new one has been saved.

    Workers that share the driver's files do it too; if they do not share them, only the driver can. In a separate
    storage only the workers do it, so that the driver does not wait for it.
    """

    def __init__(self, layout: RunLayout, spec: CheckpointSpec) -> None:
        self._layout = layout
        self._spec = spec
        self._writing: set[int] = set()
        """Steps that the vaults are writing."""

    def on_event(self, event: Event) -> None:
        """A checkpoint was saved: it is complete, so older ones may go. A disk that fails is left to the next one."""
        body = event.body
        if isinstance(body, CheckpointStarted):
            self._writing.add(body.step)
        elif isinstance(body, CheckpointSaved | CheckpointFailed):
            self._writing.discard(body.step)
        if not isinstance(body, CheckpointSaved) or self._spec.storage is not None:
            return
        try:
            rule = Rule(self._spec.keep_last, self._spec.keep_every, self._spec.keep_best)
            retain(self._layout.checkpoints, rule, trusted=(body.step,), writing=self._writing)
        except StorageError:
            return

    def on_step(self, report: StepReport) -> None:
        """Steps remove nothing."""
