import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from orchestrator.atomic_files import write_json
from orchestrator.checkpoint.survey.durability import Durability, Surroundings, VaultReport, assess
from orchestrator.checkpoint.survey.inventory import Holding
from orchestrator.cli.main import cli
from orchestrator.domain.errors import UsageError
from orchestrator.domain.events import RunState
from orchestrator.domain.run_layout import RunLayout
from orchestrator.store.run_store import RunStore

pytestmark = pytest.mark.unit
NODES = {"a" * 56: "10.0.0.1:7", "b" * 56: "10.0.0.2:7"}


def survey(time_s: float, copies: bool = True, kept_s: float = 0.0) -> Durability:
    reports = []
    for rank, (node, address) in enumerate(NODES.items()):
        held = [Holding(address, 1, rank, 2, 40, True)] + [Holding(address, 1, 1 - rank, 2, 40, False)] * copies
        reports.append(VaultReport(node, address, True, tuple(held), 3 << 20, "" if copies else "copy refused\x1b[2J"))
    return assess(reports, Surroundings(time_s, 42, 30, 4 << 20, kept_s))


def convoy(layout: RunLayout, *arguments: str) -> Result:
    home = str(layout.root.parent)
    return CliRunner().invoke(cli, ["durability", layout.run_id, *arguments, "--home", home])


@pytest.fixture
def a_run(tmp_path: Path) -> Callable[..., RunLayout]:
    def make(state: RunState | None, value: dict[str, Any] | None) -> RunLayout:
        store = RunStore(tmp_path)
        layout = store.create("tiny")
        if state is not None:
            store.set_state(layout, state)
        if value is not None:
            write_json(layout.durability, value)
        return layout

    return make


def test_a_run_that_goes_on(a_run: Callable[..., RunLayout]) -> None:
    layout = a_run(RunState.RUNNING, survey(time.time()).to_json())
    lines = convoy(layout).output.splitlines()
    assert lines[0] == f"{layout.run_id}  running, step 42"
    assert lines[1] == "  at risk now    2 steps: after the loss of any one node it would continue from step 40"
    text = "\n".join(lines)
    assert "STALE" not in text
    assert [line.split() for line in lines if line.startswith("memory,")] == [
        ["memory,", "own", "node", "40"],
        ["memory,", "peers", "40"],
    ]
    assert ["0", "aaaaaaaa", "2", "bbbbbbbb"] in [line.split() for line in lines]
    assert "aaaaaaaa  10.0.0.1  3.0 MiB" in text
    assert "planned: 4.0 MiB on a node" in text
    assert "would not survive" not in text
    value = json.loads(convoy(layout, "--json").output)
    assert (value["stale"], value["steps_at_risk"], value["memory_kept_until_s"]) == (False, 2, None)
    assert value["age_s"] < 5


def test_without_copies_it_names_the_nodes(a_run: Callable[..., RunLayout]) -> None:
    text = convoy(a_run(RunState.RUNNING, survey(time.time(), copies=False).to_json())).output
    assert "at risk now    12 steps: after the loss of any one node it would continue from step 30" in text
    assert "the state in memory would not survive the loss of: aaaaaaaa, bbbbbbbb" in text
    assert "step 30, storage" in text
    assert "\x1b" not in text


def test_an_old_survey_is_called_stale(a_run: Callable[..., RunLayout]) -> None:
    text = convoy(a_run(RunState.RUNNING, survey(time.time() - 60).to_json())).output
    assert "STALE: as of" in text
    assert "60 s ago" in text


@pytest.mark.parametrize(("ago_s", "kept"), [(100, True), (2000, False)])
def test_a_run_whose_driver_is_gone(a_run: Callable[..., RunLayout], ago_s: float, kept: bool) -> None:
    layout = a_run(RunState.RUNNING, survey(time.time() - ago_s, kept_s=900).to_json())
    state = json.loads(layout.state.read_text())
    state["driver"]["pid"], state["driver"]["start_ticks"] = 2**22 + 1, 1
    write_json(layout.state, state)
    text = convoy(layout).output
    assert "lost, step 42" in text
    assert ("continue from there with `convoy run --resume`" in text) == kept
    assert ("step 30, on storage" in text) == (not kept)


def test_a_run_that_is_over(a_run: Callable[..., RunLayout]) -> None:
    over = {**survey(time.time() - 5).to_json(), "over_s": time.time() - 4}
    text = convoy(a_run(RunState.FAILED, over)).output
    assert "the run has ended" in text
    assert "step 30, on storage" in text
    kept = {**over, "kept": True, "memory_kept_s": 900.0}
    assert "continue from there with `convoy run --resume`" in convoy(a_run(RunState.FAILED, kept)).output


def test_a_run_without_any(a_run: Callable[..., RunLayout]) -> None:
    result = convoy(a_run(None, None))
    assert isinstance(result.exception, UsageError)
    assert "has no durability.json" in result.exception.message


def test_watching_ends_with_the_run(a_run: Callable[..., RunLayout]) -> None:
    layout = a_run(RunState.SUCCEEDED, {**survey(time.time()).to_json(), "over_s": time.time()})
    lines = convoy(layout, "--watch", "--json").output.splitlines()
    assert [json.loads(line)["state"] for line in lines] == ["succeeded"]


def test_what_losing_a_node_costs_at_this_size(a_run: Callable[..., RunLayout]) -> None:
    loss = {"repeated_steps": 22, "repeated_s": 220.0, "read_s": 48.0, "copied_s": 47.0}
    layout = a_run(RunState.RUNNING, {**survey(time.time()).to_json(), "node_loss": loss})
    assert (
        "  node loss      at most 22 steps recomputed (3:40), 48.0 s to read the state from peers, 47.0 s more until "
        "all copies exist again"
    ) in convoy(layout).output
    # Of a run whose driver did not write it.
    value = survey(time.time()).to_json()
    del value["node_loss"]
    assert "node loss" not in convoy(a_run(RunState.RUNNING, value)).output
