import json
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.api.api_settings import ApiSettings
from orchestrator.client.api_errors import ApiError
from orchestrator.domain.events import CheckpointSaved
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport
from orchestrator.metrics.run_recorder import RunRecorder
from orchestrator.store.driver_process import DriverProcess
from orchestrator.store.metric_targets import Announcement, announce
from orchestrator.store.run_store import RunStore
from tests import events
from tests.served_queue import ServedQueue

pytestmark = pytest.mark.unit


def record(served: ServedQueue, report: Callable[..., StepReport], steps: int) -> RunLayout:
    """A run that has trained so far, as its driver records it."""
    layout = RunLayout(Path(served.submitted().directory))
    RunStore(served.home).claim(layout, token=1)
    recorder = RunRecorder(layout)
    for step in range(1, steps + 1):
        recorder.on_step(report(step, time_s=100.0 + step))
    recorder.on_event(events.event(CheckpointSaved, 200.0, step=steps, path="p", bytes=1, seconds=0.1, world_size=2,
                                   stage=2))  # fmt: skip
    recorder.close()
    return layout


def test_curves_have_every_step_or_ranges_of_steps(served: ServedQueue, report: Callable[..., StepReport]) -> None:
    layout = record(served, report, 1000)
    with served.client("viewer") as client:
        curves = client.curves(layout.run_id, ["loss", "step_time_s"], points=100)
        assert (curves.first_step, curves.last_step) == (1, 1000)
        loss = curves.curves["loss"]
        assert 50 <= len(loss) <= 100
        assert loss[0].high == 8.0
        assert loss[-1].step == 1000
        assert loss[-1].low == pytest.approx(8.0 / 1000)
        few = client.curves(layout.run_id, points=800)
        assert set(few.curves) == {"loss", "tokens_per_s"}
        with pytest.raises(ApiError, match="no curve"):
            client.curves(layout.run_id, ["lss"])


def test_curves_grow_with_the_run(served: ServedQueue, report: Callable[..., StepReport]) -> None:
    layout = record(served, report, 3)
    with served.client() as client:
        assert [each.step for each in client.curves("tiny").curves["loss"]] == [1, 2, 3]
        recorder = RunRecorder(layout)
        recorder.on_step(report(4, time_s=104.0))
        recorder.close()
        assert [each.step for each in client.curves("tiny").curves["loss"]] == [1, 2, 3, 4]


def test_progress_of_a_run(served: ServedQueue, report: Callable[..., StepReport]) -> None:
    layout = record(served, report, 8)
    with served.client() as client:
        progress = client.progress("tiny")
    assert (progress.run, progress.step, progress.loss) == (layout.run_id, 8, 1.0)
    assert progress.tokens_per_s == pytest.approx(768)
    assert {each.phase for each in progress.phases} >= {"forward", "backward"}


def test_what_was_not_recorded_is_not_found(served: ServedQueue) -> None:
    served.submitted()
    with served.client() as client:
        for ask in (client.durability, client.goodput):
            with pytest.raises(ApiError) as caught:
                ask("tiny")
            assert caught.value.code == "not_found"
            assert caught.value.body.hint


def test_output_is_read_in_pages_across_a_rotation(served: ServedQueue) -> None:
    layout = RunLayout(Path(served.submitted().directory))
    layout.logs.mkdir()
    layout.log(0).write_text("one\ntwo\nthr")
    layout.log(1).write_text("other\n")
    with served.client() as client:
        page = client.logs("tiny")
        assert [(line.rank, line.text) for line in page.lines] == [(0, "one"), (0, "two"), (1, "other")]
        with layout.log(0).open("a") as file:
            file.write("ee\nfour\n")
        layout.log(0).rename(layout.log(0).with_name("rank-0.log.1"))
        layout.log(0).write_text("five\n")
        texts = []
        for _ in range(3):
            page = client.logs("tiny", cursor=page.cursor)
            texts += [line.text for line in page.lines]
        assert texts == ["three", "four", "five"]
        assert page.complete
        assert [line.text for line in client.logs("tiny", rank=0, tail=1).lines] == ["five"]
        assert client.logs("tiny", rank=7).lines == []
        with pytest.raises(ApiError, match="cursor"):
            client.logs("tiny", cursor="AAAA")


def test_streams_of_an_ended_run_end_and_resume(served: ServedQueue) -> None:
    layout = RunLayout(Path(served.submitted().directory))
    layout.logs.mkdir()
    layout.log(0).write_text("".join(f"line {number}\n" for number in range(10_000)))
    with served.client() as client:
        client.act("tiny", "cancel")
        seen = list(client.follow_events("tiny"))
        assert [each.message for each in seen] == [each.message for each in client.events("tiny").events]
        assert list(client.follow_events("tiny", seen[0].number)) == seen[1:]
        lines = [line.text for page in client.follow_logs("tiny") for line in page.lines]
        assert lines == [f"line {number}" for number in range(10_000)]
    raw = served.raw(served.secret())
    resumed = raw.get("/api/v1/runs/tiny/events/stream", headers={"Last-Event-ID": str(seen[0].number)})
    assert resumed.headers["content-type"].startswith("text/event-stream")
    assert f"id: {seen[0].number}\r\n" not in resumed.text
    assert f"id: {seen[1].number}\r\n" in resumed.text
    assert json.loads(resumed.text.rsplit("data: ", 1)[1])["state"] == "cancelled"
    assert raw.get("/api/v1/runs/tiny/events/stream", headers={"Last-Event-ID": "x"}).status_code == 422
    assert raw.get("/api/v1/runs/tiny/logs/stream", headers={"Last-Event-ID": "x"}).status_code == 422


def test_a_stream_of_a_waiting_run_ends_after_its_limit_and_sends_heartbeats(served: ServedQueue) -> None:
    served.close()
    settings = ApiSettings(served.home, stream_look_s=0.01, stream_limit_s=0.3, heartbeat_s=0.05)
    brief = ServedQueue(served.home, settings)
    brief.submitted()
    answer = brief.raw(brief.secret()).get("/api/v1/runs/tiny/events/stream")
    assert "event: submitted" in answer.text
    assert "event: end" not in answer.text
    assert ": ping" in answer.text
    brief.close()


def test_the_number_of_streams_is_limited(served: ServedQueue) -> None:
    served.close()
    none = ServedQueue(served.home, ApiSettings(served.home, max_streams=0))
    none.submitted()
    answer = none.raw(none.secret()).get("/api/v1/runs/tiny/events/stream")
    assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
    assert answer.headers["retry-after"]
    none.close()


def test_prometheus_finds_the_runs_that_serve_metrics(served: ServedQueue) -> None:
    announcement = Announcement("tiny-1", "tiny", "/secret/dir", "127.0.0.1:9464", 1, DriverProcess.current())
    announce(served.home, announcement)
    (group,) = served.raw(served.secret("viewer")).get("/api/v1/prometheus/targets").json()
    assert group["targets"] == ["127.0.0.1:9464"]
    assert group["labels"]["instance"] == "tiny-1"
    assert "/secret/dir" not in json.dumps(group)
