import json
from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

from orchestrator.cli.main import cli
from orchestrator.domain.events import MicroStepMeasured
from orchestrator.domain.run_layout import RunLayout
from orchestrator.metrics.run_recorder import RunRecorder
from tests.unit.cli.conftest import T0
from tests.unit.run_facts.made import Rank, event, ledger, step

pytestmark = pytest.mark.unit
Recorded = Callable[..., RunLayout]


def why(layout: RunLayout, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["why", layout.run_id, "--home", str(layout.root.parent), *arguments])


def slow_data(layout: RunLayout) -> RunLayout:
    """Twenty more steps, that wait for data most of the time."""
    recorder = RunRecorder(layout)
    for number in range(11, 31):
        recorder.on_step(step(number, Rank(data_s=0.8), Rank(data_s=0.8), time_s=T0 + 15 + number))
    recorder.on_event(event(MicroStepMeasured, 17.0, step=3, micro_batch=8, forward_s=0.3, fixed_s=0.01))
    recorder.close()
    layout.ledger.write_text(json.dumps(ledger(48.0, productive=96.0).to_json()))
    return layout


def test_a_healthy_run(recorded: Recorded) -> None:
    done = why(recorded())
    assert done.exit_code == 0, done.output
    assert "10 steps in 28.0 s of wall clock" in done.output
    assert "nothing stands out" in done.output


def test_a_bottleneck_with_its_figure_evidence_and_advice(recorded: Recorded) -> None:
    layout = slow_data(recorded())
    text = why(layout).output
    assert "1. training waits for data: 34% of the wall clock (16.1 s)" in text
    assert "a step waits 0.54 s for the samples of the rank that gets them last" in text
    assert "   > put the prepared data on a faster disk" in text
    assert "nothing stands out" not in text
    value = json.loads(why(layout, "--json").output)
    assert (value["run"], value["steps"], value["wall_s"]) == (layout.run_id, 30, 48.0)
    assert [found["name"] for found in value["found"]] == ["data_wait"]
    assert value["found"][0]["share"] == pytest.approx(16.1 / 48.0)
    assert value["summary"].startswith("training waits for data: 34%")
