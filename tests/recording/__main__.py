"""`python -m tests.recording [picture] [outputs]`: record what the documents show, from real runs.

`picture` trains, kills a node for real, and draws what the terminals showed to `docs/pictures/node-killed.svg`; the
commands in the picture are those that run. What was captured is kept in `runs/recording.json`: `--render FILE` draws it
again.
`outputs` runs the commands in `docs/getting-started.md` and replaces their output.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.clusters.ray.node_processes import descendants, is_head, raylet_of
from orchestrator.domain.run_layout import RunLayout
from tests.recording.capture import Command, Recorder
from tests.recording.outputs import DOCUMENT, ROOT, refresh, shell
from tests.recording.svg import render
from tests.recording.timeline import Output, Pane, frames, segments

PICTURE = ROOT / "docs" / "pictures" / "node-killed.svg"
TITLE = "A node is killed while a model trains on four nodes; the other three go on"
PARTS = ("picture", "outputs")
RUN, SHELL = 0, 1
PANES = (Pane("convoy", 100, 15), Pane("another shell", 100, 8))
TRAIN = "convoy run jobs/quickstart.yaml --set train.steps=60 --set 'resources.workers={min: 2, max: 4}'"
SUMMARY = "\r\nRun "
"""Begins what is printed after the last step. It is left out: it would push the recovery out of the picture."""
KILL = "kill -9 {}   # all processes of one node"
VERIFY = "convoy data verify last"
KILL_AT_STEP = 20
START_TIMEOUT_S = 600.0
RUN_TIMEOUT_S = 1200.0
VERIFY_TIMEOUT_S = 120.0
INTERVAL_S = 0.2
HOLD_S = 8.0
T = TypeVar("T")


@dataclass(frozen=True)
class Recording:
    """What was captured. Times are seconds since it began."""

    outputs: list[Output]
    killed_s: float
    recovered_s: float
    trained_s: float
    ended_s: float


def record(home: Path) -> Recording:
    """Train in `home`, kill a node, verify. Raises SystemExit where it did not go as the picture says."""
    before = runs(home)
    with tempfile.TemporaryDirectory() as shims:
        recorder = Recorder(PANES, environment(Path(shims), home))
        with recorder.start(RUN, TRAIN) as training:
            directory = wait(lambda: next(iter(runs(home) - before), None), training, "no run began")
            layout = RunLayout(directory)
            wait(lambda: step_of(layout) >= KILL_AT_STEP, training, "it did not train")
            pids = node_processes(layout)
            with recorder.start(SHELL, KILL.format(" ".join(map(str, pids)))) as kill:
                killed_s = recorder.now_s()
                kill.wait(10.0)
            require(training.wait(RUN_TIMEOUT_S) == 0, "the run failed")
        trained_s = recorder.now_s()
        with recorder.start(SHELL, VERIFY) as verify:
            require(verify.wait(VERIFY_TIMEOUT_S) == 0, "the proof of the data failed")
        recovered = [event["time_s"] for event in events(layout) if event["kind"] == "recovery.finished"]
        require(len(recovered) == 1, f"{len(recovered)} recoveries, expected one")
        return Recording(recorder.outputs, killed_s, recovered[0] - recorder.began_s, trained_s, recorder.now_s())


def environment(shims: Path, home: Path) -> dict[str, str]:
    """That of the shells: `convoy` is this checkout's, on a terminal with colours."""
    shim = shims / "convoy"
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m orchestrator "$@"\n')
    shim.chmod(0o755)
    left_out = ("NO_COLOR", "COLORTERM", "COLUMNS", "LINES")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    path = f"{shims}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**kept, "PATH": path, "TERM": "xterm-256color", "CONVOY_HOME": str(home), "PYTHONPATH": str(ROOT)}


def wait(look: Callable[[], T | None], training: Command, failure: str) -> T:
    """Until `look` returns something true. Raises SystemExit if the training ends before."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and not training.ended:
        if found := look():
            return found
        time.sleep(0.1)
    raise SystemExit(f"error: {failure}; the terminal shows:\n{training.text()}")


def runs(home: Path) -> set[Path]:
    """Directories of the job's runs."""
    return set(home.glob("quickstart-*"))


def require(holds: bool, failure: str) -> None:
    """Raises SystemExit unless it holds."""
    if not holds:
        raise SystemExit(f"error: {failure}; no picture was drawn")


def step_of(layout: RunLayout) -> int:
    """Steps made so far, none of them twice before a node is killed."""
    return layout.steps.read_text().count("\n") if layout.steps.exists() else 0


def events(layout: RunLayout) -> list[dict[str, Any]]:
    return [json.loads(line) for line in layout.events.read_text().splitlines()]


def node_processes(layout: RunLayout) -> list[int]:
    """Pids of the node of the last worker whose node is not the head. The raylet is the last: some die with it."""
    started = [event for event in events(layout) if event["kind"] == "worker.started"]
    places = [(event["pid"], raylet_of(event["pid"])) for event in sorted(started, key=lambda event: event["rank"])]
    worker, raylet = [place for place in places if not is_head(place[1])][-1]
    return [*sorted({worker, *(process.pid for process in descendants(raylet.pid))}), raylet.pid]


def draw(recording: Recording) -> str:
    """The picture of a recording."""
    parts = segments(recording.killed_s, recording.recovered_s, recording.trained_s, recording.ended_s)
    return render(frames(without_summary(recording.outputs), PANES, parts, INTERVAL_S), PANES, HOLD_S, TITLE)


def without_summary(outputs: list[Output]) -> list[Output]:
    """The outputs, the training command's up to its summary."""
    kept, over = [], False
    for output in outputs:
        head, found, _ = output.text.partition(SUMMARY) if output.pane == RUN else (output.text, "", "")
        if not (over and output.pane == RUN):
            kept.append(replace(output, text=head))
        over = over or bool(found)
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.recording", description=__doc__)
    parser.add_argument("part", nargs="*", metavar="picture|outputs", help="default: both")
    parser.add_argument("--render", type=Path, metavar="FILE", help="draw an earlier recording, record nothing")
    options = parser.parse_args()
    parts = set(options.part or PARTS)
    if not parts <= set(PARTS):
        parser.error(f"parts are {' and '.join(PARTS)}")
    home = ROOT / "runs"
    home.mkdir(exist_ok=True)
    os.chdir(ROOT)
    if options.render is not None:
        paint(options.render)
        return
    if "picture" in parts:
        kept = home / "recording.json"
        kept.write_text(json.dumps(asdict(record(home))))
        paint(kept)
    if "outputs" in parts:
        # In an empty home nothing is cached: the document shows the first run of a reader.
        with tempfile.TemporaryDirectory() as shims, tempfile.TemporaryDirectory(dir=home) as empty:
            run = shell(environment(Path(shims), Path(empty)), {empty: str(home)})
            DOCUMENT.write_text(refresh(DOCUMENT.read_text(encoding="utf-8"), run), encoding="utf-8")
        print(f"refreshed {DOCUMENT.relative_to(ROOT)}")


def paint(kept: Path) -> None:
    """Write the picture of a recording that was kept."""
    values = json.loads(kept.read_text())
    values["outputs"] = [Output(**output) for output in values["outputs"]]
    PICTURE.write_text(draw(Recording(**values)), encoding="utf-8")
    print(f"wrote {PICTURE.relative_to(ROOT)}, {PICTURE.stat().st_size / 1024:.0f} KiB; captured: {kept}")


if __name__ == "__main__":
    main()
