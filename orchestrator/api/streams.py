"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html): what is new is sent as it comes,
with an id from which a reader resumes. Their number, their length and their silence are bounded."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sse_starlette import EventSourceResponse, ServerSentEvent

from orchestrator.api.api_settings import ApiSettings
from orchestrator.api.error_answers import TooManyStreamsError, refusal_of
from orchestrator.domain.errors import ConvoyError

END = "end"
"""The last event of a stream that is complete: nothing more will come."""
SEND_LIMIT_S = 60.0
"""A reader that takes nothing for so long is dropped."""
_LOOK_THREADS = 16
"""Looks of all streams at one time; routes have threads of their own."""
RETRY_MS = 2000
"""A browser waits so long before it resumes."""


@dataclass(frozen=True)
class StreamNews:
    """What one look has found."""

    messages: tuple[tuple[str, str, str], ...]
    """Event, id and data (JSON) of each."""
    cursor: str
    """Where the next look begins."""
    more: bool = False
    """There is more at once."""
    ended: str | None = None
    """Nothing will follow, and why, as JSON."""


Look = Callable[[str], StreamNews]
"""What is new after a cursor. Called in a thread."""


class StreamPool:
    """All open streams of a server. Used in the event loop alone."""

    def __init__(self, settings: ApiSettings) -> None:
        self._settings = settings
        self._open: Counter[str] = Counter()
        self._threads = ThreadPoolExecutor(_LOOK_THREADS, "stream")

    def stream(self, token_id: str, cursor: str, look: Look) -> EventSourceResponse:
        """An answer that sends what `look` finds. Raises TooManyStreamsError."""
        settings = self._settings
        if self._open.total() >= settings.max_streams or self._open[token_id] >= settings.max_streams_of_token:
            raise TooManyStreamsError(
                f"too many streams are open ({self._open[token_id]} of this token, {self._open.total()} in all)",
                "end some of them, or ask for pages instead",
            )
        messages = self._messages(token_id, cursor, look)
        return EventSourceResponse(messages, ping=settings.heartbeat_s, send_timeout=SEND_LIMIT_S)

    async def _messages(self, token_id: str, cursor: str, look: Look) -> AsyncIterator[ServerSentEvent]:
        self._open[token_id] += 1
        deadline = time.monotonic() + self._settings.stream_limit_s
        try:
            yield ServerSentEvent(comment="open", retry=RETRY_MS)
            while time.monotonic() < deadline:
                try:
                    news = await asyncio.get_running_loop().run_in_executor(self._threads, look, cursor)
                except ConvoyError as error:
                    yield ServerSentEvent(refusal_of(error).body.model_dump_json(), event="error")
                    return
                for event, identity, data in news.messages:
                    yield ServerSentEvent(data, event=event, id=identity)
                cursor = news.cursor
                if news.ended is not None:
                    yield ServerSentEvent(news.ended, event=END)
                    return
                if not news.more:
                    await asyncio.sleep(self._settings.stream_look_s)
        finally:
            self._open[token_id] -= 1
