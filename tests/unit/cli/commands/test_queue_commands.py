"""The commands for a server's queue, against a real queue in this process."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from starlette.testclient import TestClient

from orchestrator.cli.main import cli
from orchestrator.client import convoy_client, server_requests
from orchestrator.client.api_errors import ApiError
from orchestrator.client.server_choice import ServerAddress, read_logins, store_login
from orchestrator.domain.errors import UsageError
from orchestrator.domain.run_layout import RunLayout
from orchestrator.spec.spec_errors import SpecError
from tests.served_queue import IN_PROCESS, JOB, ServedQueue
from tests.unit.api.conftest import served as served

pytestmark = pytest.mark.unit
Convoy = Callable[..., Result]


@pytest.fixture
def convoy(served: ServedQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Convoy:
    """Run a command as a person on a laptop who has logged in as an admin."""
    real = server_requests.ServerRequests

    def in_process(address: ServerAddress, transport: object = None) -> server_requests.ServerRequests:
        return real(address, transport=TestClient(served.app, raise_server_exceptions=False)._transport)

    monkeypatch.setattr(convoy_client, "ServerRequests", in_process)
    store_login(tmp_path, IN_PROCESS, served.secret("admin"), None)

    def run(*arguments: str, **options: str) -> Result:
        home = () if arguments[-1] == "--help" else ("--home", str(tmp_path))
        return CliRunner().invoke(cli, [*arguments, *home], **options)  # type: ignore[arg-type]

    return run


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "jobs" / "job.yaml"
    path.parent.mkdir()
    (path.parent / "text.txt").write_text("to be or not to be\n" * 50)
    path.write_text(JOB.replace("FILES", "text.txt"))
    return path


def test_a_job_goes_through_the_queue(convoy: Convoy, job: Path, served: ServedQueue) -> None:
    done = convoy("submit", str(job), "--name", "first", "--priority", "high", "--set", "train.steps=7")
    assert done.exit_code == 0, done.stderr
    run_id = done.stdout.split()[0]
    assert "queued" in done.stdout
    assert "uploading  text.txt" in done.stderr
    listed = convoy("ps").stdout
    assert all(word in listed for word in (run_id, "queued", "high", "ann", "0 of 2"))
    shown = convoy("status", "first").stdout
    assert all(word in shown for word in ("waits", "may start", "queue", "priority high", "1 CPU each", run_id))
    value = json.loads(convoy("status", run_id[:-1], "--json").stdout)
    assert (value["id"], value["total_steps"], value["progress"]) == (run_id, 7, None)
    assert convoy("pause", "first").stdout.startswith(f"{run_id}  paused")
    assert json.loads(convoy("resume", "first", "--json").stdout)["state"] == "queued"
    assert "cancelled" in convoy("cancel", "first").stdout
    assert "queued" in convoy("retry", "first").stdout
    lines = convoy("events", "first").stdout.splitlines()
    assert len(lines) == 5
    assert json.loads(convoy("events", "first", "--json").stdout.splitlines()[0])["source"] == "queue"


def test_a_dry_run_queues_nothing_and_waiting_ends_with_the_run(convoy: Convoy, job: Path) -> None:
    assert "would be queued" in convoy("submit", str(job), "--dry-run").stdout
    assert convoy("ps").stdout.startswith("No runs")
    convoy("submit", str(job), "--name", "first", "--key", "k")
    convoy("cancel", "first")
    waited = convoy("submit", str(job), "--name", "first", "--key", "k", "--follow")
    assert waited.exit_code == 1
    assert "submitted by ann" in waited.stderr
    assert "cancelled" in waited.stderr
    as_json = convoy("submit", str(job), "--name", "first", "--key", "k", "--wait", "--json")
    assert json.loads(as_json.stdout)["runs"][0]["state"] == "cancelled"


def test_mistakes_have_hints_and_no_traceback(convoy: Convoy, job: Path) -> None:
    wrong = convoy("submit", str(job), "--set", "train.lr=fast")
    assert isinstance(wrong.exception, SpecError)
    assert wrong.exception.exit_code == 2
    assert wrong.exception.message.startswith("--set train.lr=fast:1:16: `train.lr`")
    job.write_text(job.read_text().replace("task: pretrain", "task: [pretrain]"))
    misplaced = convoy("submit", str(job)).exception
    assert isinstance(misplaced, SpecError)
    assert misplaced.message.startswith(f"{job}:2:7: ")
    job.write_text(job.read_text().replace("task: [pretrain]", "task: pretrain"))
    for arguments in (("status", "none"), ("cancel", "none"), ("submit", str(job), "--after", "none"),
                      ("submit", str(job), "--queue", "none"), ("nodes", "drain", "none")):  # fmt: skip
        error = convoy(*arguments).exception
        assert isinstance(error, ApiError), arguments
        assert error.code == "not_found"
        assert error.hint


def test_queues_and_nodes(convoy: Convoy, job: Path) -> None:
    convoy("submit", str(job))
    assert "default" in convoy("queue").stdout
    assert "  1. tiny-" in convoy("queue").stdout
    assert json.loads(convoy("queue", "--json").stdout)[0]["name"] == "default"
    assert "10.0.0.1" in convoy("nodes").stdout
    assert "drains" in convoy("nodes", "drain", "10.0.0.1").stdout
    assert "draining" in convoy("nodes").stdout


def test_tokens_and_logins(convoy: Convoy, tmp_path: Path) -> None:
    secret = convoy("token", "create", "laptop", "--user", "eve", "--expires", "30d").stdout.strip()
    assert secret.startswith("convoy_")
    listed = convoy("token", "list").stdout
    assert "laptop" in listed
    assert secret not in listed
    logged_in = convoy("login", IN_PROCESS, input=secret)
    assert "as eve of default, role submitter" in logged_in.output
    assert read_logins(tmp_path)[IN_PROCESS].secret == secret
    refused = convoy("token", "list").exception
    assert isinstance(refused, ApiError)
    assert refused.code == "forbidden"
    assert "removed" in convoy("login", IN_PROCESS, "--forget").output
    for arguments in (("token", "create", "a b"), ("token", "create", "x", "--expires", "soon")):
        assert isinstance(convoy(*arguments).exception, UsageError)


def test_output_and_size_of_a_run_that_only_the_server_has(convoy: Convoy, job: Path, served: ServedQueue) -> None:
    run_id = convoy("submit", str(job)).stdout.split()[0]
    layout = RunLayout(served.home / run_id)
    layout.logs.mkdir()
    layout.log(0).write_text("hello\nworld\n")
    assert convoy("logs", run_id).stdout == "[0] hello\n[0] world\n"
    assert convoy("logs", run_id, "--rank", "0", "--tail", "1").stdout == "world\n"
    assert convoy("scale", run_id, "--workers", "1").exit_code in (0, 1)
    assert "waits" in convoy("show", run_id).stdout
    missing = convoy("goodput", run_id).exception
    assert isinstance(missing, ApiError)
    assert missing.code == "not_found"
