"""What W&B is told. The package is too large for the suite: in its place stands a module that takes steps as W&B does,
in rising order and without replacing one. `tests/cluster/test_trackers.py` uses the real one if it is installed."""

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from orchestrator.trackers.tracker_points import Point
from orchestrator.trackers.tracker_sink import TrackedRun
from orchestrator.trackers.wandb_sink import WandbSink, open_wandb

pytestmark = pytest.mark.unit


class Run:
    """One run of W&B, as long as one process logs to it."""

    def __init__(self, step: int, arguments: dict[str, Any]) -> None:
        self.step, self.arguments = step, arguments
        self.settings = SimpleNamespace(mode=arguments["mode"])
        self.dir = f"{arguments['dir']}/wandb/run/files"
        self.url = f"https://wandb.ai/{arguments['project']}/{arguments['id']}"
        self.rows: dict[int, dict[str, Any]] = {}
        self.code: int | None = None

    def log(self, values: dict[str, Any], step: int) -> None:
        assert step >= self.step, "W&B leaves out what goes back"
        self.step = step
        self.rows.setdefault(step, {}).update(values)

    def finish(self, exit_code: int) -> None:
        self.code = exit_code


class Wandb(ModuleType):
    """Stands for the package."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: list[Run] = []
        self.online: Exception | None = None
        """What an online run raises."""
        self.server_step = 0

    def Settings(self, **settings: Any) -> SimpleNamespace:  # noqa: N802  # its name in the package
        return SimpleNamespace(**settings)

    def Table(self, columns: list[str], data: list[Any]) -> list[Any]:  # noqa: N802
        return [columns, *data]

    def init(self, **arguments: Any) -> Run:
        if arguments["mode"] == "online" and self.online is not None:
            raise self.online
        self.runs.append(Run(self.server_step if arguments["mode"] == "online" else 0, arguments))
        return self.runs[-1]

    def teardown(self, exit_code: int | None = None) -> None:
        pass


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    module = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    return module


def opened(directory: Path, told: list[str] | None = None, **settings: Any) -> WandbSink:
    tracked = TrackedRun("tiny-1", "tiny", directory, settings, {"train": {"lr": 1e-3}})
    return open_wandb(tracked, (told if told is not None else []).append)


def step(number: int, loss: float = 1.0) -> Point:
    return Point(number, 100.0 + number, {"train/loss": loss})


def marker(number: int, **values: float) -> Point:
    return Point(number, 100.0 + number, values, "recovery", "recovered in 1.0 s")


def test_what_a_run_is_called(tmp_path: Path, wandb: Wandb) -> None:
    opened(tmp_path, mode="offline")
    opened(tmp_path, mode="online", project="p", entity="team", name="n", tags=["a"])
    plain, named = (run.arguments for run in wandb.runs)
    assert (plain["id"], plain["project"], plain["name"], plain["dir"]) == ("tiny-1", "tiny", "tiny-1", str(tmp_path))
    assert (named["id"], named["project"], named["entity"], named["name"]) == ("tiny-1", "p", "team", "n")
    assert named["resume"] == "allow"
    assert plain["config"] == {"train": {"lr": 1e-3}}
    assert plain["settings"].console == "off"


def test_the_environment_decides_what_the_job_leaves_open(tmp_path: Path, wandb: Wandb) -> None:
    os.environ |= {"WANDB_MODE": "offline", "WANDB_PROJECT": "shared"}
    sink = opened(tmp_path)
    assert (wandb.runs[0].arguments["mode"], wandb.runs[0].arguments["project"]) == ("offline", "shared")
    assert sink.place == f"{tmp_path}/wandb/run"


def test_repeated_steps_are_left_out(tmp_path: Path, wandb: Wandb) -> None:
    sink = opened(tmp_path, mode="offline")
    sink.log(Point(0, 100.0, {"eval/loss": 5.0}))
    for number in (1, 2, 3, 2, 3, 4):
        sink.log(step(number, loss=number / 10))
    sink.log(Point(4, 104.0, {"eval/loss": 2.0}))
    sink.log(Point(3, 104.0, {"eval/loss": 9.0}))
    sink.log(marker(3, **{"events/recovery_count": 1.0}))
    sink.close(0)
    (run,) = wandb.runs
    assert run.rows.pop(0) == {"eval/loss": 5.0}
    assert [row["train/loss"] for row in run.rows.values()] == [0.1, 0.2, 0.3, 0.4]
    assert (run.rows[4]["eval/loss"], run.rows[4]["events/recovery_count"]) == (2.0, 1.0)
    assert run.rows[4]["events/table"][1] == (3, 103.0, "recovery", "recovered in 1.0 s")
    assert run.code == 0


def test_a_resumed_run_goes_on_where_it_was_logged(tmp_path: Path, wandb: Wandb) -> None:
    first = opened(tmp_path, mode="offline")
    for number in range(1, 8):
        first.log(step(number))
    first.close(1)
    second = opened(tmp_path, mode="offline")
    second.log(marker(5, **{"events/recovery_count": 1.0}))
    for number in range(6, 10):
        second.log(step(number))
    second.close(0)
    assert list(wandb.runs[1].rows) == [8, 9]
    assert wandb.runs[1].rows[8]["events/recovery_count"] == 1.0, "a marker before goes with the next step"
    wandb.server_step = 20  # on another machine nothing is noted; the server knows
    third = opened(tmp_path / "elsewhere", mode="online")
    for number in (19, 20, 21):
        third.log(step(number))
    assert list(wandb.runs[2].rows) == [20, 21], "W&B's counter is the next step"


def test_a_server_that_does_not_answer_costs_nothing(tmp_path: Path, wandb: Wandb) -> None:
    wandb.online = ConnectionError("no route\nto host")
    told: list[str] = []
    sink = opened(tmp_path, told, mode="online")
    assert told == ["no route to host; logging offline, `wandb sync` uploads it later"]
    sink.log(step(1))
    sink.close(0)
    assert (wandb.runs[0].arguments["mode"], list(wandb.runs[0].rows)) == ("offline", [1])
