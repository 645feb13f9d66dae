"""The API behind a real HTTP server: cut connections, large bodies, streams that are live, fuzzing."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from orchestrator.api.api_settings import ApiSettings
from orchestrator.client.convoy_client import ConvoyClient
from orchestrator.client.server_choice import ServerAddress
from orchestrator.domain.run_layout import RunLayout
from orchestrator.wire.run_messages import RunEvent, Submission
from tests.served_queue import ServedQueue, listening

pytestmark = pytest.mark.cluster
UNLIMITED = {"requests_per_s": 1e6, "request_burst": 1e6, "failures_per_s": 1e6, "failure_burst": 1e6}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServedQueue, str]]:
    home = tmp_path_factory.mktemp("api") / "home"
    limits = ApiSettings(home, body_wait_s=0.5, stream_look_s=0.02, **UNLIMITED)
    served = ServedQueue(home, limits)
    with listening(served.app) as url:
        yield served, url
    served.close()
    assert served.log == []


def client_of(world: tuple[ServedQueue, str]) -> ConvoyClient:
    served, url = world
    return ConvoyClient(ServerAddress(url, served.secret("admin"), None, "test"))


def head_of(served: ServedQueue, length: int) -> str:
    """Of a submission."""
    lines = ("POST /api/v1/runs HTTP/1.1", "Host: x", f"Authorization: Bearer {served.secret()}",
             "Content-Type: application/json", f"Content-Length: {length}")  # fmt: skip
    return "".join(f"{line}\r\n" for line in lines) + "\r\n"


def send(url: str, *pieces: bytes, shut: bool = False) -> bytes:
    """Bytes as they are; the answer."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20) as link:
        for piece in pieces:
            link.sendall(piece)
        if shut:
            link.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := link.recv(65536):
            answer += piece
            head, _, body = answer.partition(b"\r\n\r\n")
            lengths = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
            if lengths and len(body) >= int(lengths[0].split(b":")[1]):
                break
        return answer


def test_a_body_that_is_cut_off_has_one_clear_answer(world: tuple[ServedQueue, str]) -> None:
    served, url = world
    head = head_of(served, 500)
    began_s = time.monotonic()
    answer = send(url, head.encode(), b'{"spec": "na')
    assert answer.startswith(b"HTTP/1.1 408")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "body_incomplete"
    assert time.monotonic() - began_s < 5
    send(url, head.encode(), b'{"spec": "na', shut=True)
    put = head.replace("POST /api/v1/runs", f"PUT /api/v1/files/{'0' * 64}")
    assert send(url, put.encode(), b"part").startswith(b"HTTP/1.1 408")
    with client_of(world) as client:
        assert client.health().status == "ok"
        assert client.runs().runs == []


def test_a_spec_of_10_mb_is_refused_while_it_is_sent(world: tuple[ServedQueue, str]) -> None:
    served, url = world
    body = json.dumps({"spec": "x" * (10 << 20)}).encode()
    head = head_of(served, len(body))
    answer = send(url, head.encode(), body)
    assert answer.startswith(b"HTTP/1.1 413")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "too_large"


def test_a_stream_is_live_and_two_clients_see_the_same(world: tuple[ServedQueue, str]) -> None:
    served, _ = world
    with client_of(world) as ours, client_of(world) as theirs:
        run = ours.submit(Submission(spec=served.job("live"))).runs[0]
        seen: dict[str, list[RunEvent]] = {"ours": [], "theirs": []}
        threads = [
            threading.Thread(target=lambda name=name, client=client: seen[name].extend(client.follow_events(run.id)))
            for name, client in (("ours", ours), ("theirs", theirs))
        ]
        for thread in threads:
            thread.start()
        with client_of(world) as third:
            layout = RunLayout(Path(run.directory))
            layout.logs.mkdir()
            layout.log(0).write_text("first\n")
            pages = third.follow_logs(run.id)
            assert [line.text for line in next(pages).lines] == ["first"]
            with layout.log(0).open("a") as file:
                file.write("second\n")
            assert [line.text for line in next(pages).lines] == ["second"]
            with client_of(world) as fourth:
                fourth.act(run.id, "pause")
                fourth.act(run.id, "cancel")
            assert list(pages) == []
        for thread in threads:
            thread.join(20)
        assert [each.number for each in seen["ours"]] == [each.number for each in seen["theirs"]]
        assert len(seen["ours"]) == 3


def test_submissions_from_many_threads_are_all_queued_once(world: tuple[ServedQueue, str]) -> None:
    served, _ = world
    found: list[str] = []

    def submit(number: int) -> None:
        with client_of(world) as client:
            for each in range(5):
                answer = client.submit(Submission(spec=served.job("many")), f"{number % 2}-{each}")
                found.append(answer.runs[0].id)

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 20
    assert len(set(found)) == 10, "two threads share each key"


def test_the_api_withstands_fuzzing(tmp_path: Path) -> None:
    """Schemathesis with all checks: the server never fails, and every answer is as documented."""
    home = tmp_path / "home"
    limits = ApiSettings(home, body_wait_s=5, stream_limit_s=0.05, stream_look_s=0.02, **UNLIMITED)
    served = ServedQueue(home, limits)
    served.submitted("tiny")
    config = tmp_path / "fuzzing.toml"
    template = Path(__file__).with_name("fuzzing.toml").read_text()
    config.write_text(template.replace("JOB", json.dumps(served.job("fuzzed"))))
    with listening(served.app) as url:
        command = [
            sys.executable, "-m", "schemathesis.cli", "--config-file", str(config),
            "run", f"{url}/api/v1/openapi.json", "--checks", "all", "--seed", "14", "--max-examples", "20",
            "--max-time", "20", "--no-shrink", "--header", f"Authorization: Bearer {served.secret('admin')}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    served.close()
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert served.log == []
