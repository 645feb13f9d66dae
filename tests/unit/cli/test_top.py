"""`convoy top`: frames for any terminal, from recorded runs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator.cli.display.top_frame import LEAST_WIDTH, fleet_frame, run_frame
from orchestrator.cli.main import cli
from orchestrator.domain.run_layout import RunLayout
from orchestrator.run_facts.live_run import LiveFacts, LiveRun
from tests.unit.cli.conftest import T0

pytestmark = pytest.mark.unit
Recorded = Callable[..., RunLayout]
NOW_S = T0 + 40.0


def seen(layout: RunLayout) -> LiveFacts:
    facts = LiveRun(layout).refresh()
    assert facts is not None
    return facts


def test_one_run(recorded: Recorded) -> None:
    layout = recorded()
    text = run_frame(seen(layout), NOW_S, 80).plain
    for expected in (
        f"{layout.run_id}  succeeded",
        "step    10/10  ",
        "100%",
        "loss    4.0000  val 4.5000  ",
        "speed   2,000 tokens/s  1.0 s/step",
        "data wait 1%  forward 30%  backward 50%  optimizer 10%",
        "memory  2.0 GiB RSS at peak in all, most 1.0 GiB in a worker",
        "   1     1.0 GiB  █",
        "safe    checkpoint of step 5",
        "gang    generation 1: 2 workers, micro batch 8 x 1",
        "step 5: checkpoint saved, 50.0 MiB in 0.20 s",
    ):
        assert expected in text
    bar = next(line for line in text.splitlines() if line.startswith("phases"))
    assert (bar.count("f"), bar.count("b"), bar.count("o")) == (22, 36, 7), "without colours too"


@pytest.mark.parametrize("width", [20, LEAST_WIDTH, 80, 81, 200])
def test_no_line_is_wider_than_the_terminal(recorded: Recorded, width: int) -> None:
    facts = seen(recorded(fails_at=8))
    for frame in (run_frame(facts, NOW_S, width), fleet_frame([facts] * 3, NOW_S, width)):
        assert max(line.cell_len for line in frame.split("\n")) <= max(width, LEAST_WIDTH)
        assert "\x1b" not in frame.plain, "a worker's error does not control the terminal"


def test_a_low_terminal_shows_fewer_events(recorded: Recorded) -> None:
    facts = seen(recorded())
    assert len(run_frame(facts, NOW_S, 80, height=20).plain.splitlines()) <= 20


def test_what_is_at_risk_is_shown_while_the_run_is_active(recorded: Recorded) -> None:
    facts = seen(recorded())
    record = replace(facts.record, state=type(facts.record.state)("running"))
    value = {"own_step": 9, "peers_step": 8, "storage_step": None, "steps_at_risk": 2, "nodes": [{"answers": False}]}
    text = run_frame(replace(facts, record=record, durability=value), NOW_S, 120).plain
    assert "step 9 in memory, 8 with its copies, none on storage; 2 steps at risk; 1 node silent" in text


def test_many_ranks_are_those_with_the_most_memory(recorded: Recorded) -> None:
    facts = seen(recorded())
    rank = facts.ranks[0]
    many = tuple(
        replace(rank, rank=number, memory=replace(rank.memory, peak_rss_bytes=(100 + number) << 20))
        for number in range(64)
    )
    text = run_frame(replace(facts, ranks=many), NOW_S, 80).plain
    assert [number for number in range(64) if f"\n          {number:>2}  " in text] == list(range(56, 64))
    assert "and 56 workers with less" in text


def test_the_command_prints_one_frame_into_a_pipe(recorded: Recorded) -> None:
    layout, failed = recorded("good"), recorded("bad", fails_at=8)
    home = str(layout.root.parent)
    one = CliRunner().invoke(cli, ["top", "good", "--home", home])
    assert (one.exit_code, one.output.count("10/10")) == (0, 1)
    every = CliRunner().invoke(cli, ["top", "--once", "--home", home]).output
    assert "0 of 2 runs active" in every
    for run_id in (layout.run_id, failed.run_id):
        assert any(line.startswith(run_id[:5]) and line.count(run_id[-4:]) for line in every.splitlines())
    assert max(map(len, every.splitlines())) <= 80
    assert isinstance(CliRunner().invoke(cli, ["top", "none", "--home", home]).exception, Exception)


def test_no_runs_at_all(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["top", "--home", str(tmp_path)])
    assert (done.exit_code, "convoy run job.yaml" in done.output) == (0, True)
