import json
from dataclasses import replace

import pytest

from orchestrator.domain.step_report import CollectiveTimes, PhaseTimes, RankMemory, RankReport, StepReport

pytestmark = pytest.mark.unit

REPORT = StepReport(
    step=3, time_s=1.5, epoch=0.25, loss=2.0, grad_norm=None, lr=1e-4, tokens=100, target_tokens=99, samples=4,
    first_position=8, data_digest=2**61 + 1, step_time_s=0.5, tokens_per_s=200.0, tokens_per_s_per_worker=100.0,
    tflops_per_s=None, mfu=0.4, world_size=2, micro_batch=2, accumulation=1,
    ranks=(
        RankReport(0, 2, 50, PhaseTimes(0.0, 0.1, 0.2, 0.1), RankMemory(10, 20)),
        RankReport(
            1, 2, 50, PhaseTimes(0.0, 0.1, 0.2, 0.1, 0.05), RankMemory(10, 20, 1, 2, 3), CollectiveTimes(0, 0.01, 0.02)
        ),
    ),
)  # fmt: skip


def test_a_report_survives_json() -> None:
    assert StepReport.from_json(json.loads(json.dumps(REPORT.to_json()))) == REPORT


def test_an_older_reader_ignores_what_is_new() -> None:
    assert StepReport.from_json({**REPORT.to_json(), "added_later": 1}) == REPORT


def test_a_report_from_before_waits_were_measured_is_read() -> None:
    value = REPORT.to_json()
    for item in value["ranks"]:
        del item["waits"]
    assert StepReport.from_json(value).ranks[1].waits == CollectiveTimes()


@pytest.mark.parametrize("field", ["loss", "ranks", "step"])
def test_a_missing_field_is_an_error(field: str) -> None:
    value = REPORT.to_json()
    del value[field]
    with pytest.raises((KeyError, TypeError)):
        StepReport.from_json(value)


def test_the_digest_is_exact_in_json() -> None:
    # 2**61 + 1 is no float: whoever reads it as one would not notice a lost sample.
    value = json.loads(json.dumps(replace(REPORT, data_digest=2**61 + 1).to_json()))
    assert value["data_digest"] == 2**61 + 1
