"""The service that the API calls: submissions, lists, requests, events."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.control.live_queue import LiveQueue
from orchestrator.control.policy.queue_facts import QueueShare
from orchestrator.control.queue_service import QueueService
from orchestrator.control.queue_store.queue_table import put_queue
from orchestrator.control.server_paths import ServerPaths
from orchestrator.control.submitting import SubmitSettings
from orchestrator.domain.errors import ConflictError, ForbiddenError, NotFoundError, UsageError
from orchestrator.domain.queue.queue_states import QueueState
from orchestrator.domain.run_layout import RunLayout
from orchestrator.spec.loading.load import load_job
from orchestrator.spec.spec_errors import SpecError
from tests.unit.control.scripted import ANN, BOB, EVE, ROOT, Server, job

pytestmark = pytest.mark.unit


def test_a_submitted_run_has_a_row_a_directory_and_its_spec(server: Server) -> None:
    service: QueueService = server.queue
    answer = service.submit(
        job(workers="{min: 2, max: 8}", more="schedule: {priority: high, max_runtime: 90m}\n"), ANN, None
    )
    (run,) = answer.runs
    assert (run.name, run.team, run.user, run.queue, run.priority) == ("tiny", "ml", "ann", "default", "high")
    assert (run.state, run.min_workers, run.max_workers) == (QueueState.QUEUED, 2, 8)
    assert (run.workers, run.nodes, run.total_steps) == (0, {}, 10)
    assert run.waits is not None
    layout = RunLayout(Path(run.directory))
    assert load_job(layout.spec, (), {}).spec.schedule.max_runtime == "90m"
    record = server.runs.read(run.id)
    assert (record.status, record.active, record.lost) == ("queued", False, False)
    assert server.row(run.id).limit_s == 5400
    assert json.loads(layout.data.read_text())["job_dir"] == str(layout.root / "job")


def test_options_of_the_submission_come_before_the_job(server: Server) -> None:
    server.store.write(lambda connection: put_queue(connection, QueueShare("night")))
    given = job().model_copy(
        update={"name": "other", "queue": "night", "priority": "urgent", "overrides": ["train.steps=7"]}
    )
    run = server.queue.submit(given, ANN, None).runs[0]
    assert (run.name, run.queue, run.priority, run.total_steps) == ("other", "night", "urgent", 7)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"spec": "name: x\nmodle: 1\n"}, SpecError, r"job.yaml:2:1: unknown key `modle`"),
        ({"queue": "nigth"}, NotFoundError, "there is no queue 'nigth'"),
        ({"priority": "asap"}, SpecError, "`schedule.priority` is the text `asap`, expected one of"),
        ({"name": "No Name"}, SpecError, "expected lower-case letters"),
        ({"after": ["pretrian"]}, NotFoundError, "there is no run 'pretrian'"),
        ({"overrides": ["resources.workers=9", "train.global_batch=9"]}, UsageError, "cannot hold 9 workers"),
        ({"files": {"a.txt": "00"}}, UsageError, "takes no files"),
    ],
)
def test_bad_submissions_have_one_clear_answer_and_leave_nothing(
    server: Server, change: dict[str, object], error: type[Exception], message: str
) -> None:
    server.submit(job("pretrain"))
    server.second()
    with pytest.raises(error, match=message):
        server.queue.submit(job().model_copy(update=change), ANN, None)
    assert [run.name for run in server.queue.runs(ANN).runs] == ["pretrain"]
    assert [path.name.split("-")[0] for path in server.runs.home.iterdir()] == ["pretrain"]


def test_what_an_autoscaler_could_provide_waits_with_a_warning(server: Server) -> None:
    server.world.autoscales = True
    server.second()
    answer = server.queue.submit(
        job(more="").model_copy(update={"overrides": ["resources.cpus_per_worker=5"]}), ANN, None
    )
    assert "waits until the autoscaler has added nodes" in answer.warnings[0]


def test_a_queue_has_a_limit_that_no_run_exceeds(server: Server) -> None:
    server.store.write(lambda connection: put_queue(connection, QueueShare("small", limit={"CPU": 2.0})))
    with pytest.raises(UsageError, match="needs 3 CPU at least, and queue 'small' never gets more than 2"):
        server.queue.submit(job(workers="3").model_copy(update={"queue": "small"}), ANN, None)


def test_one_key_is_one_submission(server: Server) -> None:
    first = server.queue.submit(job(), ANN, "k")
    again = server.queue.submit(job(), ANN, "k")
    assert (first.existing, again.existing) == (False, True)
    assert [run.id for run in again.runs] == [run.id for run in first.runs]
    with pytest.raises(ConflictError, match="was used for another submission"):
        server.queue.submit(job(steps=11), ANN, "k")
    assert server.queue.submit(job(), BOB, "k").runs[0].id != first.runs[0].id, "keys are the caller's own"
    assert len(list(server.runs.home.iterdir())) == 2


def test_one_key_from_many_threads_is_one_submission(server: Server) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: server.queue.submit(job(), ANN, "k"), range(16)))
    assert len({answer.runs[0].id for answer in answers}) == 1
    assert [answer.existing for answer in answers].count(False) == 1
    assert len(list(server.runs.home.iterdir())) == 1, "directories of those that were late are removed"


def test_a_dry_run_queues_nothing(server: Server) -> None:
    for priority in ("urgent", "normal", "low"):
        server.submit(job(priority, more=f"schedule: {{priority: {priority}}}\n"))
    answer = server.queue.submit(job().model_copy(update={"dry_run": True}), ANN, "k")
    (run,) = answer.runs
    assert (run.state, run.id) == (QueueState.QUEUED, "")
    assert run.waits is not None
    assert (run.waits.position, run.waits.message) == (3, "not submitted: it would be number 3 of 4 runs that wait")
    assert len(server.queue.runs(ANN).runs) == len(list(server.runs.home.iterdir())) == 3
    with pytest.raises(SpecError):
        server.queue.submit(job(more="x: 1\n").model_copy(update={"dry_run": True}), ANN, None)


def test_a_matrix_is_a_group_that_is_listed_and_cancelled_together(server: Server) -> None:
    more = "matrix:\n  train.lr: [1e-3, 3e-4]\n  train.seed: [1, 2]\n"
    answer = server.queue.submit(job("sweep", more=more), ANN, None)
    group = answer.runs[0].group
    assert group is not None
    assert [run.name for run in answer.runs] == ["sweep-1", "sweep-2", "sweep-3", "sweep-4"]
    specs = [load_job(RunLayout(Path(run.directory)).spec, (), {}).spec for run in answer.runs]
    assert [(spec.train.lr, spec.train.seed) for spec in specs] == [(1e-3, 1), (1e-3, 2), (3e-4, 1), (3e-4, 2)]
    assert all(spec.matrix == {} for spec in specs)
    server.submit(job())
    assert [run.name for run in server.queue.runs(ANN, group=group).runs] == [
        "sweep-4",
        "sweep-3",
        "sweep-2",
        "sweep-1",
    ]
    assert "train.lr=3e-4, train.seed=2" in server.queue.events("sweep-4", 0, 10, ANN)[0].message
    server.queue.cancel(answer.runs[1].id, ANN)
    assert server.queue.cancel(group, ANN).state is QueueState.CANCELLED
    assert {run.state for run in server.queue.runs(ANN, group=group).runs} == {QueueState.CANCELLED}
    with pytest.raises(ConflictError, match=r"sweep-1-.* is cancelled, not paused"):
        server.queue.resume(group, ANN)
    with pytest.raises(SpecError, match=r"job.yaml:\d+:20: `train.lr` is `fast`"):
        server.queue.submit(job(more="matrix:\n  train.lr: [1e-3, fast]\n"), ANN, None)


def tuned_spec() -> str:
    """A job that continues from the export of `pretrain`."""
    lines = job("tune").spec.splitlines()
    lines[1:3] = ["model: {pretrained: '${runs.pretrain.export}'}"]
    return "\n".join(lines) + "\n"


def test_a_job_uses_the_export_of_a_run_that_it_comes_after(server: Server) -> None:
    first = server.queue.submit(job("pretrain", steps=1), ANN, None).runs[0]
    tuned = tuned_spec()
    second = server.queue.submit(job().model_copy(update={"spec": tuned}), ANN, None).runs[0]
    assert (second.state, second.after) == (QueueState.BLOCKED, [first.id])
    assert second.waits is not None
    assert second.waits.blockers == [first.id]
    export = RunLayout(Path(first.directory)).export
    assert load_job(RunLayout(Path(second.directory)).spec, (), {}).spec.model.pretrained == str(export)
    export.mkdir()
    server.until(second.id, QueueState.ACTIVE)
    wrong = tuned.replace("pretrain.export", "pretrian.export")
    with pytest.raises(SpecError, match=r"job.yaml:2:\d+: this job comes after no run `pretrian`"):
        server.queue.submit(job().model_copy(update={"spec": wrong}), ANN, None)


def test_a_missing_export_ends_the_run_that_needs_it(server: Server) -> None:
    server.submit(job("pretrain", steps=1))
    tuned = tuned_spec()
    second = server.submit(job().model_copy(update={"spec": tuned}))
    row = server.until(second, QueueState.FAILED)
    assert "its export is missing" in str(row.reason)


def test_a_failure_stops_what_depends_on_it_and_says_why(server: Server) -> None:
    first = server.submit(job("first"))
    second = server.submit(job("second").model_copy(update={"after": ["first"]}))
    third = server.submit(job("third", more=f"schedule: {{after: [{second}]}}\n"))
    server.queue.cancel(first, ANN)
    row = server.until(third, QueueState.FAILED)
    assert row.reason == f"run {second}, which it comes after, is failed"
    assert server.row(second).reason == f"run {first}, which it comes after, is cancelled"
    server.second(2)
    assert server.runs.read(third).status == "failed"
    with pytest.raises(ConflictError, match=f"nothing can come after run {first}: it is cancelled"):
        server.submit(job().model_copy(update={"after": [first]}))
    with pytest.raises(ConflictError, match=r"which is failed"):
        server.queue.retry(third, ANN)
    server.queue.retry(first, ANN)
    assert server.queue.retry(second, ANN).state is QueueState.BLOCKED
    server.until(second, QueueState.ACTIVE)


def test_runs_are_found_by_id_prefix_name_and_last_with_suggestions(server: Server) -> None:
    first, second, other = (server.submit(job(name)) for name in ("tiny", "tiny", "large"))
    assert server.queue.run(first, EVE).id == first
    assert server.queue.run("tiny", EVE).id == second
    assert server.queue.run("last", EVE).id == other
    assert server.queue.run("lar", EVE).id == other
    with pytest.raises(ConflictError, match="is the start of several runs"):
        server.queue.run("tin", EVE)
    with pytest.raises(NotFoundError, match="there is no run 'tinny'") as caught:
        server.queue.run("tinny", EVE)
    assert "did you mean tiny" in str(caught.value.hint)
    for strange in ("", "%", "'; DROP TABLE runs", "x" * 10_000, "\x00"):
        with pytest.raises((NotFoundError, ConflictError)):
            server.queue.run(strange, EVE)


def test_pages_of_a_list_are_complete_while_runs_are_added(server: Server) -> None:
    ids = [server.submit(job(f"n{number}")) for number in range(5)]
    page = server.queue.runs(EVE, limit=2)
    server.submit(job("later"))
    found = [run.id for run in page.runs]
    while page.next_cursor is not None:
        page = server.queue.runs(EVE, limit=2, cursor=page.next_cursor)
        found += [run.id for run in page.runs]
    assert found == ids[::-1]
    assert [run.user for run in server.queue.runs(EVE, states=["queued"], user="ann", limit=1).runs] == ["ann"]
    with pytest.raises(UsageError, match="is no state of a run"):
        server.queue.runs(EVE, states=["sleeping"])
    with pytest.raises(UsageError, match="is no cursor"):
        server.queue.runs(EVE, cursor="-1")


def test_viewers_read_submitters_act_on_their_team_and_admins_on_all(server: Server) -> None:
    run = server.submit(job())
    for caller, message in ((EVE, "a viewer may not"), (BOB, "belongs to team 'ml', you are in 'vision'")):
        for act in (server.queue.cancel, server.queue.pause, server.queue.resume, server.queue.retry):
            with pytest.raises(ForbiddenError, match=message):
                act(run, caller)
        with pytest.raises(ForbiddenError, match=message):
            server.queue.scale(run, 1, caller)
        assert server.queue.run(run, caller).id == run
        assert server.queue.events(run, 0, 10, caller)
    with pytest.raises(ForbiddenError, match="may not submit"):
        server.queue.submit(job(), EVE, None)
    with pytest.raises(ForbiddenError, match="only an admin"):
        server.queue.drain("a", None, ANN)
    assert server.queue.pause(run, ROOT).state is QueueState.PAUSED


def test_pause_resume_cancel_retry_of_a_waiting_run(server: Server) -> None:
    run = server.submit(job())
    paused = server.queue.pause(run, ANN)
    assert (paused.state, paused.waits.obstacle if paused.waits else "") == (QueueState.PAUSED, "paused")
    assert server.queue.pause(run, ANN).state is QueueState.PAUSED, "again is harmless"
    server.second(3)
    assert server.state(run) is QueueState.PAUSED
    assert server.queue.resume(run, ANN).state is QueueState.QUEUED
    with pytest.raises(ConflictError, match="is queued, not paused"):
        server.queue.resume(run, ANN)
    assert server.queue.cancel(run, ANN).state is QueueState.CANCELLED
    assert server.queue.cancel(run, ANN).state is QueueState.CANCELLED
    server.second()
    assert server.runs.read(run).status == "stopped"
    assert server.row(run).settled
    retried = server.queue.retry(run, ANN)
    assert (retried.state, retried.attempt, retried.ended_s) == (QueueState.QUEUED, 2, None)
    server.until(run, QueueState.SUCCEEDED)
    for act in (server.queue.cancel, server.queue.retry, server.queue.pause):
        with pytest.raises(ConflictError):
            act(run, ANN)


def test_scale_changes_what_a_run_asks_for(server: Server) -> None:
    run = server.submit(job(workers="{min: 2, max: 4}"))
    view = server.queue.scale(run, 3, ANN)
    assert (view.min_workers, view.max_workers) == (2, 3)
    with pytest.raises(UsageError, match="allows 2 to 4 workers"):
        server.queue.scale(run, 5, ANN)
    fixed = server.submit(job(workers="2"))
    view = server.queue.scale(fixed, 8, ANN)
    assert (view.min_workers, view.max_workers) == (2, 8)
    with pytest.raises(UsageError, match="cannot share a global batch of 8"):
        server.queue.scale(fixed, 9, ANN)


def test_events_of_queue_and_run_are_one_stream_that_resumes(server: Server) -> None:
    run = server.submit(job())
    file = RunLayout(Path(server.row(run).directory)).events
    server.second()

    def line(time_s: float, kind: str, lease: int = 1) -> bytes:
        return json.dumps({"time_s": time_s, "kind": kind, "v": 2, "state": "running", "lease": lease}).encode() + b"\n"

    start_s = server.time.unix_s
    file.write_bytes(line(start_s + 0.5, "one") + line(start_s + 0.6, "two"))
    server.second(2)
    everything = server.queue.events(run, 0, 100, EVE)
    assert [event.number for event in everything] == sorted({event.number for event in everything})
    assert [event.kind for event in everything][:3] == ["submitted", "granted", "launched"]
    assert {event.source for event in everything} == {"queue", "run"}
    for cut in range(len(everything)):
        rest = server.queue.events(run, everything[cut].number, 100, EVE)
        assert [(event.kind, event.time_s) for event in rest] == [
            (event.kind, event.time_s) for event in everything[cut + 1 :]
        ]
    last = everything[-1].number
    with file.open("ab") as stream:
        stream.write(line(start_s + 9, "three", lease=2) + line(start_s + 9.1, "late", lease=1) + b'{"half')
    (fresh,) = server.queue.events(run, last, 100, EVE)
    assert (fresh.kind, fresh.source, fresh.message) == ("three", "run", "three: running")
    assert "lease" not in fresh.data
    assert [event.kind for event in server.queue.events(run, 0, 2, EVE)] == ["submitted", "granted"]
    assert max(event.number for event in server.queue.events(run, 0, 100, EVE)) < 1 << 53


def test_queues_and_nodes_show_who_has_what(server: Server) -> None:
    wide, waiting = server.submit(job("wide", workers="6")), server.submit(job("next", workers="4"))
    server.second(2)
    (queue,) = server.queue.queues(EVE)
    assert (queue.name, queue.used, queue.running, queue.waiting) == ("default", {"CPU": 6.0}, 1, [waiting])
    nodes = {node.id: node for node in server.queue.nodes(EVE)}
    assert nodes["a"].runs == {wide: 4}
    assert nodes["a"].booked == {"CPU": 4.0}
    assert nodes["b"].runs == {wide: 2}
    drained = server.queue.drain("b", 50.0, ROOT)
    assert (drained.draining, drained.deadline_s, server.world.drained) == (True, 50.0, ["b"])
    with pytest.raises(NotFoundError, match="there is no one node 'zz'") as caught:
        server.queue.drain("zz", None, ROOT)
    assert caught.value.hint == "the nodes are a, b"
    view = server.queue.server()
    assert (view.acting, view.cluster, view.server_id) == (True, "127.0.0.1:6379", server.store.server_id)
    waits = server.queue.run(waiting, EVE).waits
    assert waits is not None
    assert (waits.position, waits.obstacle, waits.message) == (1, "capacity", "needs 4 workers")


def limited(server: Server, root: Path) -> LiveQueue:
    settings = SubmitSettings(variables={"CORPUS": str(root / "corpus")}, paths=ServerPaths((root / "corpus",)))
    return LiveQueue(server.store, server.runs, server.board, server.world, settings)


def test_a_job_reads_neither_the_environment_nor_files_beyond_what_the_operator_lists(
    server: Server, fast_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET", "hush")
    corpus = fast_directory / "corpus"
    corpus.mkdir()
    (fast_directory / "private").mkdir()
    (corpus / "link").symlink_to(fast_directory / "private")
    queue = limited(server, fast_directory)

    def submit(pattern: str) -> None:
        queue.submit(job().model_copy(update={"spec": job().spec.replace("*.txt", pattern)}), ANN, None)

    submit("${CORPUS}/*.txt")
    submit("own/../*.txt")
    for pattern in ("/etc/passwd", "${CORPUS}/../private/*", "../../../../../etc/*", "${CORPUS}/link/*", "~/x"):
        with pytest.raises(ForbiddenError, match=r"data.sources\[0\].files\[0\]"):
            submit(pattern)
    with pytest.raises(SpecError, match="`AWS_SECRET` is not set") as caught:
        submit("${AWS_SECRET}/*.txt")
    assert "hush" not in str(caught.value)
    with pytest.raises(UsageError, match="on the server"):
        submit("${CORPUS}/missing/*.txt")
    assert len(list(server.runs.home.iterdir())) == 2
