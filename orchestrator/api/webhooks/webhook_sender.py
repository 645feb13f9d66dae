"""Sends the changes of runs to a URL, each at least once and in their order, as long as the receiver answers."""

import json
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from orchestrator.api.webhooks.webhook_message import LEAST_SECRET_BYTES, WebhookMessage, message_of
from orchestrator.atomic_files import read_json, write_bytes
from orchestrator.control.queue_store.event_table import QueueEvent, events_after, newest_number
from orchestrator.control.queue_store.queue_store import QueueStore
from orchestrator.control.queue_store.run_rows import RunRow
from orchestrator.control.queue_store.run_table import run_by_seq
from orchestrator.domain.errors import UsageError
from orchestrator.domain.queue.queue_states import QueueState
from orchestrator.lasting_thread import LastingThread

LOOK_FOR_CHANGES_S = 1.0
TIMEOUT_S = 10.0
"""A receiver has to answer within."""
PAGE = 100
"""Events that are read at once."""
FIRST_RETRY_S, LONGEST_RETRY_S = 1.0, 300.0
"""After failures in a row the pause doubles from the first to the longest."""
MOST_DELIVERY_TRIES = 14
"""Of one message: about forty minutes. Then it is left out, and the log says so."""
Post = Callable[[str, bytes, dict[str, str]], int]
"""URL, body, headers: the status of the answer. Raises httpx2.TransportError."""


@dataclass(frozen=True)
class WebhookTarget:
    """Where messages go, and which."""

    url: str
    secret: bytes
    states: frozenset[QueueState]
    """A message for each run that comes into one of these."""

    @property
    def host(self) -> str:
        """For the log: a URL may have a secret in it."""
        return urlsplit(self.url).hostname or "?"


def read_secret(path: Path) -> bytes:
    """The secret in a file. Raises UsageError if it cannot be read, is short, or others may read it."""
    try:
        secret, mode = path.read_bytes().strip(), path.stat().st_mode
    except OSError as error:
        raise UsageError(f"the webhook secret {path} cannot be read: {error.strerror}") from error
    if len(secret) < LEAST_SECRET_BYTES:
        hint = f"openssl rand -base64 32 > {path} && chmod 600 {path}"
        raise UsageError(f"the webhook secret {path} has {len(secret)} bytes, at least {LEAST_SECRET_BYTES}", hint)
    if mode & 0o077:
        raise UsageError(f"others may read the webhook secret {path}", f"chmod 600 {path}")
    return secret


def retry_pause_s(failures: int) -> float:
    """After so many failures in a row. Pure."""
    return min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0 ** max(0, failures - 1))


def wanted(event: QueueEvent, states: Collection[QueueState]) -> bool:
    """Whether an event is a change into one of these states. Pure."""
    return event.target in states and event.source != event.target


class WebhookSender:
    """Delivers to one target. What was delivered is written down, so that a server that is started again continues."""

    def __init__(
        self, store: QueueStore, target: WebhookTarget, place: Path, acting: Callable[[], bool],
        log: Callable[[str], None], post: Post | None = None, now: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        """`place`: file with the number of the last event; `acting`: whether this server holds the lease. Only changes
        from now on are sent to a new target."""
        self._store, self._target, self._place, self._acting = store, target, place, acting
        self._log, self._post, self._now = log, post or _post, now
        self._failures, self._ending = 0, threading.Event()
        self._thread: LastingThread | None = None

    def start(self) -> None:
        """Deliver in the background until `close`."""
        self._thread = LastingThread(f"webhook {self._target.host}", self._lasting_turn, self._log)

    def close(self) -> None:
        """End after the delivery in progress."""
        self._ending.set()
        if self._thread is not None:
            self._thread.stop()
            self._thread.join(TIMEOUT_S)

    def turn(self) -> float:
        """Deliver what is new; the seconds until the next turn. Raises UnavailableError, OSError."""
        if not self._acting():
            return LOOK_FOR_CHANGES_S
        number = self._number()
        events = self._store.read(lambda connection: events_after(connection, number, PAGE))
        for event in events:
            if wanted(event, self._target.states):
                if not self._delivered(event):
                    return retry_pause_s(self._failures)
                self._failures = 0
                self._write(event.number)
        if events:
            self._write(events[-1].number)
        return 0.0 if len(events) == PAGE else LOOK_FOR_CHANGES_S

    def _lasting_turn(self) -> bool:
        return not self._ending.wait(self.turn())

    def _delivered(self, event: QueueEvent) -> bool:
        """Try once; True also if it is given up."""
        row: RunRow | None = self._store.read(lambda connection: run_by_seq(connection, event.run))
        if row is None:
            return True
        problem = self._try(message_of(self._store.server_id, event, row))
        if problem is None:
            return True
        self._failures += 1
        if self._failures == 1:
            self._log(f"webhook {self._target.host}: {problem}; it is tried again")
        if self._failures < MOST_DELIVERY_TRIES:
            return False
        self._log(
            f"webhook {self._target.host}: {problem}, {self._failures} times; {row.id} {event.target} is left out"
        )
        return True

    def _try(self, message: WebhookMessage) -> str | None:
        headers = message.headers(self._target.secret, self._now())
        try:
            status = self._post(self._target.url, message.body, headers)
        except httpx2.TransportError as error:
            return type(error).__name__
        return None if 200 <= status < 300 else f"it answered {status}"

    def _number(self) -> int:
        value = (read_json(self._place) or {}).get("number")
        if isinstance(value, int):
            return value
        newest = self._store.read(newest_number)
        self._write(newest)
        return newest

    def _write(self, number: int) -> None:
        write_bytes(self._place, json.dumps({"number": number}).encode(), durable=False, mode=0o600)


def _post(url: str, body: bytes, headers: dict[str, str]) -> int:
    with httpx2.Client(timeout=TIMEOUT_S, follow_redirects=False) as client:
        return client.post(url, content=body, headers=headers).status_code
