"""The state of a run: the one place that changes it, on disk and for observers."""

from orchestrator.domain.events import Emit, RunState, StateChanged, WarningIssued
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.run_states import FINAL_STATES, is_allowed
from orchestrator.store.run_store import RunStore


class RunStateMachine:
    """Starts in `preparing`, which the creation or the claim of the run has recorded."""

    def __init__(self, store: RunStore, layout: RunLayout, emit: Emit) -> None:
        self._store, self._layout, self._emit = store, layout, emit
        self._state = RunState.PREPARING

    @property
    def state(self) -> RunState:
        """The present state."""
        return self._state

    def begin(self) -> None:
        """Record and report the first state."""
        self._record(RunState.PREPARING, None)

    def enter(self, state: RunState, reason: str | None = None) -> None:
        """Change the state, on disk first.

        Raises RuntimeError if the table of transitions does not have it: that is a bug. If the disk refuses a state
        that is not final, the run continues and a warning says so. Raises OSError if it refuses a final state.
        """
        if not is_allowed(self._state, state):
            raise RuntimeError(f"a run cannot go from {self._state} to {state}")
        self._record(state, reason)

    def _record(self, state: RunState, reason: str | None) -> None:
        self._state = state
        try:
            self._store.set_state(self._layout, state, reason)
        except OSError as error:
            if state in FINAL_STATES:
                raise
            message = f"the state `{state}` cannot be recorded in {self._layout.state}: {error}"
            self._emit(WarningIssued(message))
        self._emit(StateChanged(state, reason))
