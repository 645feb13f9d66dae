"""`convoy top`: runs, live."""

import contextlib
import os
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.options import complete_run, home_option
from orchestrator.store.run_store import RunStore

if TYPE_CHECKING:
    from rich.text import Text

SHOWN_ENDED = 10
"""Runs that are over, below those that are active."""
QUIT_KEYS = frozenset({"q", "Q", "\x03", "\x1b"})
"""q, Ctrl-C and Escape."""
PIPE_WIDTH = 80
Frame = Callable[[float, int, int | None], "Text"]
"""The text at a time (Unix seconds), for a width and a height in characters."""


@click.command()
@click.argument("run", required=False, shell_complete=complete_run)
@click.option("--once", is_flag=True, help="Print one frame and end. So it does if the output is not a terminal.")
@click.option(
    "--interval", "interval_s", type=click.FloatRange(min=0.2, max=60.0), default=1.0, show_default=True,
    help="Seconds from one frame to the next.",
)  # fmt: skip
@home_option
def top(run: str | None, once: bool, interval_s: float, home: Path) -> None:
    """Watch runs live.

    Without RUN all active runs and the newest others are listed. With RUN one run is shown: progress, the loss, speed,
    phases of a step, memory of each worker, how safe its state is, its generation of workers, and the last events.

    Keys: q ends it. It reads only what is appended to the files of the runs, and works on any machine that sees them.

    \b
    Examples:
      convoy top
      convoy top last
      convoy top last --once | head -3
    """
    frame = _run_frame(run, home) if run is not None else _fleet_frame(home)
    if once or not sys.stdout.isatty():
        width = shutil.get_terminal_size((PIPE_WIDTH, 24)).columns if sys.stdout.isatty() else PIPE_WIDTH
        click.echo(frame(time.time(), width, None).plain)
        return
    _watch(frame, interval_s)


def _run_frame(run: str, home: Path) -> Frame:
    """Raises UsageError if there is no such run."""
    from orchestrator.cli.display.top_frame import run_frame
    from orchestrator.run_facts.live_run import LiveRun

    live = LiveRun(RunStore(home).read(run).layout)

    def frame(now_s: float, width: int, height: int | None) -> "Text":
        from rich.text import Text

        facts = live.refresh()
        return Text(f"{live.layout.root} is gone") if facts is None else run_frame(facts, now_s, width, height)

    return frame


def _fleet_frame(home: Path) -> Frame:
    from orchestrator.cli.display.top_frame import fleet_frame
    from orchestrator.run_facts.live_run import LiveFleet

    fleet = LiveFleet(home, SHOWN_ENDED)
    return lambda now_s, width, height: fleet_frame(fleet.refresh(), now_s, width)


def _watch(frame: Frame, interval_s: float) -> None:
    """Draw until a key of `QUIT_KEYS`."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    with _single_keys() as keyboard, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(frame(time.time(), console.width, console.height), refresh=True)
            if keyboard(interval_s) in QUIT_KEYS:
                return


@contextlib.contextmanager
def _single_keys() -> Iterator[Callable[[float], str]]:
    """A function that waits so many seconds for a key, and returns it, or nothing. Without a keyboard it only waits."""
    if not sys.stdin.isatty():
        yield _only_wait
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield lambda wait_s: _key(descriptor, wait_s)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _only_wait(wait_s: float) -> str:
    time.sleep(wait_s)
    return ""


def _key(descriptor: int, wait_s: float) -> str:
    look = select.poll()
    look.register(descriptor, select.POLLIN)
    ready = look.poll(wait_s * 1000.0)
    return os.read(descriptor, 1).decode(errors="replace") if ready else ""
