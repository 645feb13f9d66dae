"""`python -m orchestrator.api.openapi_document`: writes the OpenAPI document of the API, which is committed.

It refuses to change the document of a version that exists: clients rely on it. `API_VERSION` in `wire/api_version.py`
has to change first. `--same-version` is for a version that has not been released.
"""

import json
import sys
from pathlib import Path
from typing import cast

from orchestrator.api.access.issued_tokens import IssuedTokens
from orchestrator.api.api_app import routed_app
from orchestrator.api.api_parts import ApiParts
from orchestrator.api.api_settings import ApiSettings
from orchestrator.control.queue_service import QueueService
from orchestrator.domain.errors import UsageError
from orchestrator.store.uploads.file_store import FileStore

DOCUMENT = Path(__file__).with_name("openapi.json")


def document_text() -> str:
    """The document of this code."""
    # The signatures of the routes are described; nothing is called.
    service, tokens = cast(QueueService, None), cast(IssuedTokens, None)
    app = routed_app(ApiParts(service, tokens, FileStore(Path()), ApiSettings(Path())))
    return json.dumps(app.openapi(), indent=1, sort_keys=True) + "\n"


def check_change(before: str | None, after: str) -> None:
    """Raises UsageError if the document has changed and its version has not. Pure."""
    if before is None or before == after:
        return
    version = json.loads(after)["info"]["version"]
    if json.loads(before)["info"]["version"] == version:
        raise UsageError(
            f"the API has changed, and its version is still {version}",
            "raise API_VERSION in orchestrator/wire/api_version.py: the minor number if old clients still work",
        )


def main(same_version: bool) -> int:
    """Write the document; the exit code."""
    before = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else None
    after = document_text()
    try:
        if not same_version:
            check_change(before, after)
    except UsageError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    DOCUMENT.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main("--same-version" in sys.argv[1:]))
