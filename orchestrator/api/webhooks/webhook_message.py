"""What a webhook gets, signed as Standard Webhooks says it
(https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md). Pure."""

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass

from orchestrator.control.queue_store.event_table import QueueEvent
from orchestrator.control.queue_store.run_rows import RunRow
from orchestrator.json_values import JsonObject

ID_HEADER, TIME_HEADER, SIGNATURE_HEADER = "webhook-id", "webhook-timestamp", "webhook-signature"
LEAST_SECRET_BYTES = 24
"""As the standard asks for."""


@dataclass(frozen=True)
class WebhookMessage:
    """One delivery."""

    id: str
    """The same in each try: a receiver recognises repetitions by it."""
    body: bytes

    def headers(self, secret: bytes, now_s: float) -> dict[str, str]:
        """Id, time and signature of a try. `now_s`: Unix seconds."""
        stamp = str(int(now_s))
        return {
            "content-type": "application/json",
            ID_HEADER: self.id,
            TIME_HEADER: stamp,
            SIGNATURE_HEADER: signature(secret, self.id, stamp, self.body),
        }


def signature(secret: bytes, message_id: str, stamp: str, body: bytes) -> str:
    """`v1,` and the HMAC-SHA256 of id, time and body, in Base64."""
    signed = b".".join((message_id.encode(), stamp.encode(), body))
    return f"v1,{base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()}"


def message_of(server_id: str, event: QueueEvent, run: RunRow) -> WebhookMessage:
    """What is said about a change of a run. It has no secrets and no spec."""
    data: JsonObject = {
        "run": run.id,
        "name": run.name,
        "group": run.group_name,
        "queue": run.queue,
        "team": run.team,
        "user": run.user,
        "state": event.target.value,
        "before": event.source.value if event.source is not None else None,
        "message": event.message,
    }
    body = {"type": f"run.{event.target.value}", "timestamp": event.time_s, "server": server_id, "data": data}
    return WebhookMessage(f"{server_id}-{event.number}", json.dumps(body).encode())
