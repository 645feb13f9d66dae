import json
import math
from dataclasses import replace

import pytest

from orchestrator.domain.ranks.rank_report import CollectiveTimes, PhaseTimes, RankMemory, RankReport
from orchestrator.domain.ranks.rank_summary import ranks_from_columns, summarise
from orchestrator.domain.step_report import StepReport
from orchestrator.json_values import JsonObject, JsonShapeError, objects, parse_object

pytestmark = pytest.mark.unit

RANKS = (
    RankReport(0, 2, 50, PhaseTimes(0.0, 0.1, 0.2, 0.1), RankMemory(10, 20, 3, 2, 1)),
    RankReport(
        1, 2, 50, PhaseTimes(0.0, 0.1, 0.2, 0.1, 0.05), RankMemory(10, 20, 1, 2, 3), CollectiveTimes(0, 0.01, 0.02)
    ),
)
REPORT = StepReport(
    step=3, time_s=1.5, epoch=0.25, loss=2.0, grad_norm=None, lr=1e-4, tokens=100, target_tokens=99, samples=4,
    first_position=8, data_digest=2**61 + 1, step_time_s=0.5, tokens_per_s=200.0, tokens_per_s_per_worker=100.0,
    tflops_per_s=None, mfu=0.4, world_size=2, micro_batch=2, accumulation=1, ranks=summarise(RANKS),
)  # fmt: skip


def in_file(report: StepReport) -> StepReport:
    """What of a report is in files."""
    return replace(report, ranks=replace(report.ranks, work=None))


def through_text(value: JsonObject | None) -> JsonObject:
    return parse_object(json.dumps(value))


def version_1() -> JsonObject:
    """The line that an earlier version wrote."""
    line = REPORT.to_json()
    for name in ("v", "spread", "slowest"):
        del line[name]
    return {**line, "ranks": [report.to_json() for report in RANKS]}


def test_a_message_has_every_rank_and_a_line_has_not() -> None:
    assert StepReport.from_json(through_text(REPORT.to_message())) == in_file(REPORT)
    alone = replace(REPORT, ranks=replace(REPORT.ranks, every=(), work=None))
    assert StepReport.from_json(through_text(REPORT.to_json())) == alone


def test_the_ranks_have_a_line_of_their_own() -> None:
    line = through_text(REPORT.to_ranks_json())
    assert (line["v"], line["step"], line["world_size"]) == (2, 3, 2)
    assert ranks_from_columns(line) == RANKS
    assert replace(REPORT, ranks=summarise(RANKS, every=False)).to_ranks_json() is None


def test_an_older_reader_ignores_what_is_new() -> None:
    assert StepReport.from_json({**REPORT.to_message(), "added_later": 1}) == in_file(REPORT)


def test_a_line_from_before_fp16_was_reported_is_read() -> None:
    scaled = replace(REPORT, loss_scale=1024.0, skipped=True)
    line = scaled.to_message()
    assert StepReport.from_json(through_text(line)) == in_file(scaled)
    del line["loss_scale"], line["skipped"]
    assert StepReport.from_json(through_text(line)) == in_file(REPORT)


def test_a_line_of_version_1_is_summarised() -> None:
    assert StepReport.from_json(through_text(version_1())) == REPORT


def test_a_report_from_before_waits_were_measured_is_read() -> None:
    value = version_1()
    ranks = objects(value, "ranks")
    for item in ranks:
        del item["waits"]
    read = StepReport.from_json({**value, "ranks": ranks}).ranks
    assert read.every[1].waits == CollectiveTimes()
    assert read.spread.collective_s.max == 0.0


@pytest.mark.parametrize("field", ["loss", "spread", "slowest", "step"])
def test_a_missing_field_is_an_error(field: str) -> None:
    value = REPORT.to_json()
    del value[field]
    with pytest.raises(JsonShapeError, match=f"`{field}` is missing"):
        StepReport.from_json(value)


def test_a_loss_that_is_no_number_is_null_in_files() -> None:
    assert math.isnan(StepReport.from_json({**REPORT.to_json(), "loss": None}).loss)


def test_the_digest_is_exact_in_json() -> None:
    # 2**61 + 1 is no float: a reader that takes it for one would not notice a lost sample.
    assert through_text(replace(REPORT, data_digest=2**61 + 1).to_json())["data_digest"] == 2**61 + 1
