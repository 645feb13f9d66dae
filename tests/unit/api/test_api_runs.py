import time

import pytest

from orchestrator.client.api_errors import ApiError
from orchestrator.wire.run_messages import Submission
from tests.served_queue import ServedQueue

pytestmark = pytest.mark.unit


def test_a_job_is_submitted_listed_and_cancelled(served: ServedQueue) -> None:
    with served.client() as client:
        answer = client.submit(Submission(spec=served.job("first"), priority="high"))
        run = answer.runs[0]
        assert (run.name, run.user, run.team, run.priority, run.state) == ("first", "ann", "nlp", "high", "queued")
        assert not answer.existing
        assert [each.id for each in client.runs().runs] == [run.id]
        assert client.run("first").id == client.run(run.id[:-2]).id == run.id
        assert client.act("first", "pause").state == "paused"
        assert client.act("first", "resume").state == "queued"
        assert client.act("first", "cancel").state == "cancelled"
        assert client.act("first", "retry").state == "queued"
        kinds = [event.message for event in client.events("first").events]
        assert len(kinds) == 5
        assert "ann" in kinds[0]


def test_the_list_has_pages_and_filters(served: ServedQueue) -> None:
    with served.client() as client:
        ids = [served.submitted(f"run-{number}", client).id for number in range(5)]
        client.act(ids[0], "cancel")
        page = client.runs(limit=3)
        rest = client.runs(limit=3, cursor=page.next_cursor)
        assert [run.id for run in [*page.runs, *rest.runs]] == list(reversed(ids))
        assert rest.next_cursor is None
        assert [run.id for run in client.runs(["cancelled"]).runs] == ids[:1]
        assert client.runs(user="nobody-else").runs == []


def test_one_key_queues_once_and_another_submission_with_it_is_refused(served: ServedQueue) -> None:
    with served.client() as client:
        submission = Submission(spec=served.job())
        first, second = client.submit(submission, "key-1"), client.submit(submission, "key-1")
        assert second.existing
        assert [run.id for run in second.runs] == [run.id for run in first.runs]
        with pytest.raises(ApiError) as caught:
            client.submit(Submission(spec=served.job("other")), "key-1")
        assert (caught.value.status, caught.value.code) == (409, "conflict")
        assert len(client.runs().runs) == 1


def test_status_codes_of_submissions(served: ServedQueue) -> None:
    raw, body = served.raw(served.secret()), {"spec": served.job()}
    assert raw.post("/api/v1/runs", json=body, headers={"Idempotency-Key": "k"}).status_code == 201
    assert raw.post("/api/v1/runs", json=body, headers={"Idempotency-Key": "k"}).status_code == 200
    assert raw.post("/api/v1/runs", json={**body, "dry_run": True}).status_code == 200
    assert raw.post("/api/v1/runs", json=body, headers={"Idempotency-Key": "two words"}).status_code == 422


def test_a_mistake_in_a_job_has_its_place(served: ServedQueue) -> None:
    with served.client() as client, pytest.raises(ApiError) as caught:
        client.submit(Submission(spec=served.job().replace("lr: 1e-3", "lr: fast"), file_name="my.yaml"))
    body = caught.value.body
    line = served.job().splitlines().index("train: {steps: 5, global_batch: 4, lr: 1e-3}") + 1
    assert (caught.value.status, body.code, body.line) == (422, "invalid_job", line)
    assert body.column == 40
    assert body.details["problems"][0]["file"] == "my.yaml"  # type: ignore[index]


@pytest.mark.parametrize(
    ("spec", "status", "code"),
    [
        ("a: " + "[" * 5000, 422, "invalid_job"),
        ("&a [" + "*a," * 3 + "]", 422, "invalid_job"),
        ("name: [" + "x, " * 400_000 + "]", 422, "invalid"),
        ("x" * (10 << 20), 413, "too_large"),
    ],
    ids=["deep", "alias", "1.2 MB", "10 MB"],
)
def test_absurd_specs_have_one_clear_answer(served: ServedQueue, spec: str, status: int, code: str) -> None:
    answer = served.raw(served.secret()).post("/api/v1/runs", json={"spec": spec})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert len(answer.content) < 10_000


def test_jobs_cannot_read_the_environment_of_the_server(served: ServedQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_SERVER", "swordfish")
    spec = served.job().replace(str(served.text), "${SECRET_OF_THE_SERVER}")
    answer = served.raw(served.secret()).post("/api/v1/runs", json={"spec": spec})
    assert answer.status_code == 422
    assert "swordfish" not in answer.text


def test_a_path_that_does_not_exist_is_refused_with_the_side(served: ServedQueue) -> None:
    spec = served.job().replace(str(served.text), "/nowhere/text.txt")
    with served.client() as client, pytest.raises(ApiError, match="/nowhere/text") as caught:
        client.submit(Submission(spec=spec))
    assert "server" in f"{caught.value.message} {caught.value.hint}"


def test_unknown_runs_suggest_near_ones(served: ServedQueue) -> None:
    served.submitted("pretrain")
    with served.client() as client, pytest.raises(ApiError) as caught:
        client.run("pretrian")
    assert (caught.value.status, caught.value.code, caught.value.exit_code) == (404, "not_found", 2)
    assert "pretrain" in (caught.value.hint or "")


def test_scaling_nodes_queues_and_the_server(served: ServedQueue) -> None:
    served.submitted("wide")
    with served.client("admin") as admin:
        assert {node.address for node in admin.nodes()} == {"10.0.0.1", "10.0.0.2"}
        node = admin.drain("10.0.0.2", 600)
        assert node.draining
        (drained,) = served.cluster.drained
        assert drained == (f"{2:028x}", node.deadline_s)
        assert node.deadline_s == pytest.approx(time.time() + 600, abs=60)
        assert [queue.name for queue in admin.queues()] == ["default"]
        assert admin.queues()[0].waiting == [admin.run("wide").id]
        assert admin.server().server_id == served.store.server_id
        assert admin.health().status == "ok"
        with pytest.raises(ApiError) as caught:
            admin.scale("wide", 100)
    assert caught.value.status in (409, 422)
