"""Which state in memory training continues from. Pure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from orchestrator.domain.session import PeerState


@dataclass(frozen=True)
class RestoreFacts:
    """What the choice depends on besides the states."""

    saved_step: int
    """Of the newest checkpoint in storage; 0: none."""
    recorded_step: int
    """The last step whose report is on record."""
    verifiable: Collection[int]
    """Steps whose results are known: a step that is recomputed can be compared with them."""


def choose_state_in_memory(states: Sequence[PeerState], facts: RestoreFacts) -> PeerState | None:
    """The best of `states` (newest first); None if storage has a newer one, or there is none.

    The report of a step may be lost with the worker that was to deliver it. A state up to the last step on record is
    preferred, so that such a step is recomputed and recorded; and a state whose next step can be verified before that.
    """
    newer = [state for state in states if state.step >= facts.saved_step]
    on_record = [state for state in newer if state.step <= facts.recorded_step]
    verifiable = [state for state in on_record if state.step + 1 in facts.verifiable]
    return next(iter(verifiable or on_record or newer), None)


@dataclass(frozen=True)
class Superseded:
    """A past that training went back behind: its states must not be used."""

    generation: int
    """Of the newest gang that left such states."""
    above_step: int
    """States of later steps are void; -1: all of them."""

    def covers(self, state: PeerState) -> bool:
        """Whether this state is void."""
        return state.generation <= self.generation and state.step > self.above_step
