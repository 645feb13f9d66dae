"""`recovery`: what goes with which answer to a numeric fault."""

from collections.abc import Iterator

from orchestrator.spec.checks.partial_job import View
from orchestrator.spec.spec_errors import Problem


def rollback_settings(view: View) -> Iterator[Problem]:
    """What describes rollbacks goes with rollbacks."""
    answer = view.get("recovery.on_nan")
    for name in ("skip_around", "max_rollbacks"):
        if answer != "rollback_and_skip" and view.changed(f"recovery.{name}"):
            message = f"`recovery.{name}` does not go with `on_nan: {answer}`, which does not roll back"
            yield view.problem(f"recovery.{name}", message, "remove it, or set `on_nan: rollback_and_skip`", key=True)


def spike_window_fits(view: View) -> Iterator[Problem]:
    """Training is longer than the window that spikes are judged by."""
    steps = view.optional_integer("train.steps")
    if view.get("recovery.loss_spike") is None or steps is None:
        return
    window = view.integer("recovery.loss_spike.window")
    if window >= steps:
        message = f"`recovery.loss_spike.window` is {window}, so no step of `train.steps` ({steps}) would be judged"
        where = "recovery.loss_spike.window" if view.given("recovery.loss_spike.window") else "recovery.loss_spike"
        hint = f"for example `window: {max(8, steps // 10)}`" if steps > 8 else "remove `loss_spike`"
        yield view.problem(where, message, hint, key=where == "recovery.loss_spike")


CHECKS = (rollback_settings, spike_window_fits)
