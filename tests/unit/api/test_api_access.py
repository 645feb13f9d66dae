import time

import pytest

from orchestrator.api.access.bearer_tokens import digest_of, mistake_in, new_secret
from orchestrator.api.access.token_bucket import RateLimiter
from orchestrator.api.api_settings import ApiSettings
from orchestrator.client.api_errors import ApiError
from orchestrator.wire.request_messages import TokenRequest
from orchestrator.wire.run_messages import Submission
from tests.served_queue import ServedQueue

pytestmark = pytest.mark.unit

PATHS = ("/runs", "/runs/x", "/nodes", "/queues", "/server", "/tokens", "/prometheus/targets", "/no-such-path")


@pytest.mark.parametrize("path", PATHS)
def test_nothing_but_health_works_without_a_token(served: ServedQueue, path: str) -> None:
    answer = served.raw().get(f"/api/v1{path}")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.json()["code"] == "unauthenticated"
    assert answer.json()["hint"]
    assert served.raw().get("/api/v1/health").status_code == 200


def test_roles_and_teams_limit_what_a_token_may_do(served: ServedQueue) -> None:
    run = served.submitted()
    with served.client("viewer") as viewer:
        assert viewer.run(run.id).id == run.id
        for refused in (lambda: viewer.submit(Submission(spec=served.job())), lambda: viewer.act(run.id, "cancel"),
                        lambda: viewer.missing_files([]), viewer.tokens):  # fmt: skip
            with pytest.raises(ApiError) as caught:
                refused()
            assert (caught.value.status, caught.value.code) == (403, "forbidden")
    with served.client(team="vision", user="bob") as other, pytest.raises(ApiError, match="team") as caught:
        other.act(run.id, "cancel")
    assert caught.value.status == 403
    with served.client() as own, pytest.raises(ApiError):
        own.drain("10.0.0.1")
    with served.client("admin", team="ops") as admin:
        assert admin.act(run.id, "cancel").state == "cancelled"


def test_a_token_is_made_listed_revoked_and_stored_as_a_hash(served: ServedQueue) -> None:
    with served.client("admin") as admin:
        made = admin.create_token(TokenRequest(name="laptop", user="eve", team="nlp", role="viewer"))
        assert next(view.name for view in admin.tokens()) == "laptop"
        assert served.raw(made.secret).get("/api/v1/tokens/self").json()["user"] == "eve"
        with pytest.raises(ApiError, match="laptop"):
            admin.create_token(TokenRequest(name="laptop", user="eve", team="nlp"))
        assert admin.revoke_token("laptop").revoked
        answer = served.raw(made.secret).get("/api/v1/runs")
        assert answer.status_code == 401
        assert "revoked" in answer.json()["message"]
        with pytest.raises(ApiError, match="itself"):
            admin.revoke_token(admin.own_token().id)
    stored = b"".join(path.read_bytes() for path in (served.home / "server").glob("queue.db*"))
    assert digest_of(made.secret).encode() in stored
    assert made.secret.encode() not in stored
    assert made.secret[-43:].encode() not in stored


def test_an_expired_token_is_refused(served: ServedQueue) -> None:
    request = TokenRequest(name="short", user="eve", team="nlp", expires_in_s=0.001)
    secret = served.tokens.create(request).secret
    time.sleep(0.002)
    answer = served.raw(secret).get("/api/v1/runs")
    assert answer.status_code == 401
    assert "expired" in answer.json()["message"]


def test_a_token_of_another_server_and_a_broken_one_are_named(served: ServedQueue) -> None:
    foreign = served.raw(new_secret("another", bytes(32))).get("/api/v1/runs").json()
    assert "another server" in foreign["message"]
    broken = served.raw("convoy_123").get("/api/v1/runs").json()
    assert "no token" in broken["message"]
    assert "convoy_123" not in broken["message"]
    assert mistake_in(new_secret("this", bytes(32)), "this") is None


def test_requests_are_limited_by_token_and_failures_by_address(served: ServedQueue) -> None:
    served.close()
    settings = ApiSettings(served.home, requests_per_s=0.1, request_burst=3, failures_per_s=0.1, failure_burst=2)
    tight = ServedQueue(served.home, settings)
    raw, other = tight.raw(tight.secret()), tight.raw(tight.secret())
    assert [raw.get("/api/v1/runs").status_code for _ in range(4)] == [200, 200, 200, 429]
    limited = raw.get("/api/v1/runs")
    assert limited.json()["code"] == "rate_limited"
    assert 1 <= int(limited.headers["retry-after"]) <= 11
    assert other.get("/api/v1/runs").status_code == 200
    assert [tight.raw("convoy_x").get("/api/v1/runs").status_code for _ in range(3)] == [401, 401, 429]
    assert tight.raw(tight.secret()).get("/api/v1/runs").status_code == 200
    tight.close()


def test_a_bucket_fills_with_time() -> None:
    limiter = RateLimiter(per_s=2.0, burst=2.0)
    assert [limiter.wait_s("a", 0.0) for _ in range(3)] == [0.0, 0.0, 0.5]
    assert limiter.wait_s("b", 0.0) == 0.0
    assert limiter.wait_s("a", 0.5) == 0.0
    assert limiter.wait_s("a", 100.0) == limiter.wait_s("a", 100.0) == 0.0
    assert limiter.wait_s("a", 100.0) > 0


def test_a_client_of_another_major_version_gets_a_clear_answer(served: ServedQueue) -> None:
    raw = served.raw(served.secret())
    answer = raw.get("/api/v1/runs", headers={"Convoy-Api-Version": "2.3"})
    assert answer.status_code == 426
    assert answer.json()["code"] == "version_mismatch"
    assert "2.3" in answer.json()["message"]
    assert raw.get("/api/v1/runs", headers={"Convoy-Api-Version": "1.99"}).status_code == 200


def test_every_answer_has_an_id_a_version_and_headers_for_browsers(served: ServedQueue) -> None:
    raw = served.raw(served.secret())
    for answer in (raw.get("/api/v1/runs"), raw.get("/api/v1/runs/none"), served.raw().get("/api/v1/runs")):
        assert answer.headers["convoy-api-version"] == "1.0"
        assert len(answer.headers["x-request-id"]) == 16
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    given = raw.get("/api/v1/runs", headers={"X-Request-Id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"


def test_a_failure_of_the_server_is_logged_without_secrets(
    served: ServedQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = served.secret()
    monkeypatch.setattr(served.service, "queues", lambda caller: 1 // len(""))
    answer = served.raw(secret).get("/api/v1/queues")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    (line,) = served.log
    assert answer.headers["x-request-id"] in line
    assert "ZeroDivisionError" in line
    assert secret not in line + answer.text


def test_a_wrong_method_names_the_right_ones_and_a_wrong_body_is_named(served: ServedQueue) -> None:
    raw = served.raw(served.secret())
    wrong = raw.delete("/api/v1/runs")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, POST")
    for content in (b"{", b"\xff\xfe", b"[" * 100_000):
        answer = raw.post("/api/v1/runs", content=content, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422), content[:10]
        assert answer.json()["code"] in ("malformed", "invalid")
