"""The version of the HTTP API, and the headers that both sides know."""

API_VERSION = "1.0"
"""Major and minor. The minor number increases with every change of the OpenAPI document, the major number with one that
breaks older clients."""
API_PREFIX = "/api/v1"
"""The path of everything but the page. Its number is the major version."""
VERSION_HEADER = "Convoy-Api-Version"
"""In every answer, and in the requests of the client."""
REQUEST_HEADER = "X-Request-Id"
"""In every answer; a request may bring its own."""
KEY_HEADER = "Idempotency-Key"
RESUME_HEADER = "Last-Event-ID"
INVALID_JOB = "invalid_job"
"""Code of an error that is about a job: `details.problems` has all mistakes."""
MAX_BODY_BYTES = 4 << 20
"""Of a request that is no upload. A job file of 1 MiB may double when it is written as JSON."""
MAX_UPLOADED_BYTES = 64 << 20
"""Of one uploaded file."""
MAX_FILES = 1000
"""Files of one submission."""
MAX_UPLOAD_BYTES = 256 << 20
"""All files of one submission together."""


def major(version: str) -> str:
    """The part before the dot."""
    return version.partition(".")[0]
