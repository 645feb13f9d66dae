"""The text at the end of a run: the result, where everything is, and what to do next."""

import os
import shlex
from pathlib import Path

from orchestrator.cli.display import formatting
from orchestrator.cli.display.run_view import ShownRun
from orchestrator.cli.options import DEFAULT_HOME
from orchestrator.domain.run_layout import RunLayout


def command(text: str, home: Path) -> str:
    """A command that works in the user's shell: with `CONVOY_HOME` unless the shell has it already."""
    known = Path(os.environ.get("CONVOY_HOME") or DEFAULT_HOME)
    return text if known.absolute() == home.absolute() else f"CONVOY_HOME={shlex.quote(str(home))} {text}"


def succeeded(view: ShownRun, layout: RunLayout, home: Path) -> str:
    """The end of a run that reached its last step."""
    lines = ["", f"Run {layout.run_id} succeeded: {_trained(view)}", *_losses(view), "", *_places(view, layout)]
    if view.sample:
        lines += ["", "Sample:", *_indented(view.sample.text)]
    run = layout.run_id
    lines += ["", "Next:"]
    if view.exported:
        prompt = shlex.quote(view.sample.prompt if view.sample is not None else "The")
        lines.append(f"  {command(f'convoy generate {run} --prompt {prompt}', home)}")
    lines.append(f"  {command(f'convoy show {run}', home)}")
    lines.append(f"  {command(f'convoy data verify {run}', home)}")
    if view.checkpoints:
        lines.append(f"  {command(f'convoy export {run} --to model', home)}")
    return "\n".join(lines)


def stopped(view: ShownRun, layout: RunLayout, home: Path, reason: str | None) -> str:
    """The end of a run that was asked to stop."""
    lines = ["", f"Run {layout.run_id} stopped at step {view.step}" + (f": {reason}" if reason else "")]
    lines += _losses(view)
    lines += ["", *_places(view, layout), "", *_resume(view, layout, home)]
    return "\n".join(lines)


def failed(view: ShownRun, layout: RunLayout, home: Path, reason: str | None) -> str:
    """The end of a run that failed, with the complete traceback of the worker that failed first."""
    lines = [""]
    if view.failures:
        first = view.failures[0]
        if first.traceback.strip():
            lines += [f"Worker {first.rank} failed first; its traceback:", "", *_indented(first.traceback), ""]
        else:
            # A killed process has no traceback.
            lines += [f"Worker {first.rank} failed first: {formatting.printable(first.error)}", ""]
        if len(view.failures) > 1:
            others = ", ".join(str(rank) for rank in sorted({failure.rank for failure in view.failures[1:]}))
            lines += [f"Failed after that: worker {others}.", ""]
    at = f" at step {view.step}" if view.last is not None else ""
    lines += [f"Run {layout.run_id} failed{at}: {formatting.printable(reason or 'no reason was given')}", ""]
    if view.last is None and not view.failures:
        # It ended before training: there is nothing else to show.
        return "\n".join([*lines, f"  run         {layout.root}"])
    lines += _places(view, layout)
    if view.failures and layout.log(view.failures[0].rank).exists():
        lines.append(f"  its log     {layout.log(view.failures[0].rank)}")
    lines += ["", *_resume(view, layout, home)]
    return "\n".join(lines)


def _trained(view: ShownRun) -> str:
    return f"{view.step} steps" + (f", {formatting.count(view.tokens_per_s)} tokens/s" if view.tokens_per_s else "")


def _losses(view: ShownRun) -> list[str]:
    lines = []
    if view.first is not None and view.last is not None:
        first, last = view.first.loss, view.last.loss
        change = formatting.change(first, last)
        lines.append(f"  training loss    {formatting.loss(first)} -> {formatting.loss(last)}  ({change})")
    if len(view.validation_losses) > 1:
        first_loss, last_loss = view.validation_losses[0][1], view.validation_losses[-1][1]
        change = formatting.change(first_loss, last_loss)
        lines.append(f"  validation loss  {formatting.loss(first_loss)} -> {formatting.loss(last_loss)}  ({change})")
    elif view.validation_losses:
        lines.append(f"  validation loss  {formatting.loss(view.validation_losses[0][1])}")
    return lines


def _places(view: ShownRun, layout: RunLayout) -> list[str]:
    lines = [f"  run         {layout.root}"]
    if view.recoveries:
        lines.append(f"  recovered   {formatting.recoveries(view.recoveries)}; see {layout.incidents}")
    if view.exported:
        lines.append(f"  model       {view.exported.path}  ({formatting.size(view.exported.bytes)})")
    if view.checkpoints:
        lines.append(f"  checkpoint  {view.checkpoints[-1].path}")
    if view.last is not None:
        lines.append(f"  steps       {layout.steps}")
    if layout.report.is_file():
        lines.append(f"  report      {layout.report}")
    if layout.logs.is_dir():
        lines.append(f"  logs        {layout.logs}")
    return lines


def _resume(view: ShownRun, layout: RunLayout, home: Path) -> list[str]:
    # The controller finds the checkpoint to continue from; without one the run would start from step 1.
    if view.left_in_memory:
        until = formatting.when(view.left_in_memory.until_s)
        return [
            f"Continue from step {view.left_in_memory.step}, which its nodes keep in memory until {until}:",
            f"  {command(f'convoy run --resume {layout.run_id}', home)}",
        ]
    resumable = bool(view.checkpoints or view.resumed_from_step) or (
        layout.checkpoints.is_dir() and any(layout.checkpoints.iterdir())
    )
    if resumable:
        return ["Continue from its last checkpoint:", f"  {command(f'convoy run --resume {layout.run_id}', home)}"]
    return ["It has no checkpoint to continue from: start it again. Set checkpoint.interval_steps to have some."]


def _indented(text: str) -> list[str]:
    return [f"  {line}" for line in formatting.printable(text).rstrip().split("\n")]
