"""The client against servers that fail as networks and proxies do."""

from collections.abc import Callable, Iterator

import httpx2
import pytest

from orchestrator.client.api_errors import ApiError, UnreachableError
from orchestrator.client.convoy_client import ConvoyClient
from orchestrator.client.server_choice import ServerAddress
from orchestrator.client.server_requests import MOST_RESUMES, MOST_TRIES, ServerRequests
from orchestrator.wire.cluster_messages import ServerView
from orchestrator.wire.record_messages import HealthView
from orchestrator.wire.run_messages import Submission, SubmitAnswer

pytestmark = pytest.mark.unit

VERSION = {"Convoy-Api-Version": "1.0"}
HEALTHY = {"status": "ok", "version": "1", "api": "1.0"}
ADDRESS = ServerAddress("http://far:1", "convoy_x", None, "--server")
Answer = Callable[[httpx2.Request], httpx2.Response]


class Network:
    """Answers one after the other; what it was asked, and how long the client has waited."""

    def __init__(self, *answers: httpx2.Response | Exception) -> None:
        self.asked: list[httpx2.Request] = []
        self.waited_s: list[float] = []
        self._answers = iter(answers)
        self.requests = ServerRequests(ADDRESS, sleep=self.waited_s.append, transport=httpx2.MockTransport(self.answer))

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request)
        found = next(self._answers)
        if isinstance(found, Exception):
            raise found
        return found


def ok(value: object, version: str = "1.0") -> httpx2.Response:
    return httpx2.Response(200, json=value, headers={"Convoy-Api-Version": version})


def refused(status: int, code: str, **headers: str) -> httpx2.Response:
    return httpx2.Response(status, json={"code": code, "message": "no"}, headers={**VERSION, **headers})


def stream(*lines: str) -> httpx2.Response:
    text = "".join(f"{line}\n" for line in lines)
    return httpx2.Response(200, content=text, headers={**VERSION, "content-type": "text/event-stream"})


def test_a_busy_server_is_asked_again_when_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(refused(429, "rate_limited", **{"Retry-After": "3"}), refused(503, "unavailable"), ok(HEALTHY))
    assert network.requests.get("/health", HealthView).status == "ok"
    assert network.waited_s[0] == 3.0
    assert 0 < network.waited_s[1] <= 0.5


def test_tries_are_bounded_and_mistakes_are_not_repeated() -> None:
    network = Network(*[refused(503, "unavailable")] * MOST_TRIES)
    with pytest.raises(ApiError) as caught:
        network.requests.get("/health", HealthView)
    assert caught.value.exit_code == 1
    assert len(network.asked) == MOST_TRIES
    network = Network(refused(404, "not_found"))
    with pytest.raises(ApiError) as caught:
        network.requests.get("/runs/x", HealthView)
    assert (caught.value.exit_code, len(network.asked)) == (2, 1)


def test_a_submission_whose_answer_was_lost_is_sent_again_with_its_key() -> None:
    network = Network(httpx2.ReadError("gone"), ok({"runs": []}))
    network.requests.post("/runs", SubmitAnswer, Submission(spec="x"), key="k1")
    assert [request.headers["idempotency-key"] for request in network.asked] == ["k1", "k1"]


def test_a_request_that_is_not_safe_twice_is_sent_once() -> None:
    network = Network(httpx2.ReadTimeout("late"))
    with pytest.raises(UnreachableError, match="did not answer in time"):
        network.requests.post("/tokens", ServerView)
    assert len(network.asked) == 1


def test_another_program_and_another_version_are_recognised() -> None:
    with pytest.raises(UnreachableError, match="no server of Convoy"):
        Network(httpx2.Response(200, text="<html>")).requests.get("/health", HealthView)
    with pytest.raises(UnreachableError, match=r"version 2\.0"):
        Network(ok(HEALTHY, "2.0")).requests.get("/health", HealthView)
    with pytest.raises(UnreachableError, match="does not understand"):
        Network(ok({"what": 1})).requests.get("/health", HealthView)


def test_nobody_listening_is_said_with_where_the_address_is_from() -> None:
    with pytest.raises(UnreachableError, match="--server"):
        Network(httpx2.ConnectError("refused")).requests.get("/health", HealthView)


def test_a_missing_token_is_said_with_the_command() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        assert "authorization" not in request.headers
        return refused(401, "unauthenticated")

    address = ServerAddress("http://far:1", None, None, "--server")
    client = ConvoyClient(address, transport=httpx2.MockTransport(answer))
    with client, pytest.raises(ApiError, match="needs a token") as caught:
        client.runs()
    assert caught.value.hint is not None
    assert "convoy login http://far:1" in caught.value.hint


def test_a_stream_resumes_after_the_last_message() -> None:
    network = Network(
        stream("id: 1", "data: a", ""),
        httpx2.ConnectError("away"),
        stream("id: 2", "data: b", "", "event: end", "data: {}", ""),
    )
    messages = list(network.requests.stream("/events"))
    assert [(each.event, each.id, each.data) for each in messages[:2]] == [("message", "1", "a"), ("message", "2", "b")]
    assert messages[-1].event == "end"
    assert "last-event-id" not in network.asked[0].headers
    assert [request.headers["last-event-id"] for request in network.asked[1:]] == ["1", "1"]


def test_a_stream_that_stays_away_is_given_up() -> None:
    def forever() -> Iterator[Exception]:
        while True:
            yield httpx2.ReadError("gone")

    network = Network()
    network._answers = forever()
    with pytest.raises(UnreachableError, match="resume"):
        list(network.requests.stream("/events"))
    assert len(network.asked) == MOST_RESUMES + 1
    with pytest.raises(ApiError):
        list(Network(refused(403, "forbidden")).requests.stream("/events"))
    broken = stream("event: error", 'data: {"code": "not_found", "message": "broken"}', "")
    with pytest.raises(ApiError, match="broken"):
        list(Network(broken).requests.stream("/events"))
