"""Runs that have more workers than a person now wants for them."""

from orchestrator.control.policy.tick_state import TickState


def shrink_to_maximum(state: TickState) -> None:
    """Take what is above the maximum of a run: `convoy scale` lowers it while the run trains."""
    for holder in state.holders.values():
        above = 0 if holder.leaves else holder.workers - holder.run.ask.maximum
        for row in sorted(holder.extras, reverse=True):
            taken = min(above, holder.extras.get(row, 0))
            if taken > 0:
                state.take_extra(holder, row, taken)
                above -= taken
