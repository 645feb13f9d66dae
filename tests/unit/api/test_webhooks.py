import base64
import hashlib
import hmac
import json
from pathlib import Path

import httpx2
import pytest

from orchestrator.api.server_settings import read_settings
from orchestrator.api.webhooks.webhook_message import signature
from orchestrator.api.webhooks.webhook_sender import (
    MOST_DELIVERY_TRIES,
    WebhookSender,
    WebhookTarget,
    read_secret,
    retry_pause_s,
)
from orchestrator.domain.errors import UsageError
from orchestrator.domain.queue.queue_states import QueueState
from tests.served_queue import ServedQueue

pytestmark = pytest.mark.unit

SECRET = b"x" * 32


class Receiver:
    """Answers with these statuses, then with 204; None: the connection is refused."""

    def __init__(self, *statuses: int | None) -> None:
        self.statuses = list(statuses)
        self.got: list[tuple[bytes, dict[str, str]]] = []

    def post(self, url: str, body: bytes, headers: dict[str, str]) -> int:
        self.got.append((body, headers))
        status = self.statuses.pop(0) if self.statuses else 204
        if status is None:
            raise httpx2.ConnectError("refused")
        return status

    @property
    def types(self) -> list[str]:
        return [json.loads(body)["type"] for body, _ in self.got]


def sender(served: ServedQueue, receiver: Receiver, log: list[str] | None = None, acting: bool = True) -> WebhookSender:
    states = frozenset({QueueState.PAUSED, QueueState.CANCELLED})
    target = WebhookTarget("https://hooks.example.com/T0?token=hush", SECRET, states)
    said = log if log is not None else []
    return WebhookSender(served.store, target, served.home / "hook.json", lambda: acting, said.append, receiver.post,
                         lambda: 1e9)  # fmt: skip


def test_changes_are_sent_signed_once_and_in_order(served: ServedQueue) -> None:
    receiver = Receiver()
    served.submitted("before")
    sending = sender(served, receiver)
    sending.turn()
    with served.client() as client:
        run = served.submitted("first", client)
        for action in ("pause", "resume", "cancel"):
            client.act(run.id, action)
    sending.turn()
    sending.turn()
    sender(served, receiver).turn()  # of a server that was started again
    assert receiver.types == ["run.paused", "run.cancelled"]
    body, headers = receiver.got[0]
    data = json.loads(body)["data"]
    assert (data["run"], data["user"], data["before"]) == (run.id, "ann", "queued")
    signed = b".".join((headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body))
    expected = base64.b64encode(hmac.new(SECRET, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"


def test_the_signature_is_that_of_the_standard() -> None:
    """The example of https://github.com/standard-webhooks/standard-webhooks."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    found = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}')
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_receiver_that_fails_is_tried_again_and_given_up_at_last(served: ServedQueue) -> None:
    receiver, log = Receiver(None, 500), list[str]()
    sending = sender(served, receiver, log)
    sending.turn()
    with served.client() as client:
        client.act(served.submitted("first", client).id, "cancel")
    assert [sending.turn(), sending.turn()] == [1.0, 2.0]
    assert sending.turn() == 1.0
    assert len(receiver.got) == 3
    assert len({headers["webhook-id"] for _, headers in receiver.got}) == 1
    receiver.statuses = [503] * MOST_DELIVERY_TRIES
    with served.client() as client:
        client.act(served.submitted("second", client).id, "cancel")
        for _ in range(MOST_DELIVERY_TRIES):
            sending.turn()
        client.act(served.submitted("third", client).id, "cancel")
    sending.turn()
    assert json.loads(receiver.got[-1][0])["data"]["name"] == "third"
    assert any("left out" in line for line in log)
    assert "hush" not in "".join(log)
    assert retry_pause_s(30) == 300.0


def test_a_server_that_does_not_act_sends_nothing(served: ServedQueue) -> None:
    receiver = Receiver()
    with served.client() as client:
        client.act(served.submitted("first", client).id, "cancel")
    sender(served, receiver, acting=False).turn()
    assert receiver.got == []
    assert not (served.home / "hook.json").exists()


def test_secrets_and_settings_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    with pytest.raises(UsageError, match="cannot be read"):
        read_secret(path)
    path.write_bytes(b"short")
    with pytest.raises(UsageError, match="at least 24"):
        read_secret(path)
    path.write_bytes(SECRET + b"\n")
    path.chmod(0o644)
    with pytest.raises(UsageError, match="others may read"):
        read_secret(path)
    path.chmod(0o600)
    assert read_secret(path) == SECRET
    config = tmp_path / "config.yaml"
    config.write_text("webhooks: [{url: 'https://x', secret_file: s, states: [ended]}]\n")
    with pytest.raises(UsageError, match="'ended' is no state"):
        read_settings(tmp_path, config, {}, {})
    config.write_text("webhooks: [{url: 'https://x', secret_file: s}]\n")
    assert "failed" in read_settings(tmp_path, config, {}, {}).config.webhooks[0].states
