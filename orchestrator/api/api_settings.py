"""The limits of the HTTP API."""

from dataclasses import dataclass
from pathlib import Path

from orchestrator.wire.api_version import MAX_BODY_BYTES, MAX_UPLOADED_BYTES


@dataclass(frozen=True)
class ApiSettings:
    """Everything that is bounded, and where runs are."""

    home: Path
    """`CONVOY_HOME` of the server."""
    requests_per_s: float = 500.0
    """Of one token, in the long run."""
    request_burst: float = 1000.0
    failures_per_s: float = 1.0
    """Requests without a valid token, of one address. More of them get 429. Valid tokens are not concerned."""
    failure_burst: float = 30.0
    max_body_bytes: int = MAX_BODY_BYTES
    max_file_bytes: int = MAX_UPLOADED_BYTES
    body_wait_s: float = 30.0
    """How long the next piece of a body may take."""
    upload_wait_s: float = 600.0
    """How long a whole body may take."""
    max_streams: int = 128
    """SSE streams at one time."""
    max_streams_of_token: int = 32
    heartbeat_s: float = 15.0
    """A stream that has nothing to say sends a comment this often, so that proxies keep it open."""
    stream_look_s: float = 0.5
    """From one look for news to the next, in a stream."""
    stream_limit_s: float = 3600.0
    """A stream ends after this time; its reader resumes it."""
