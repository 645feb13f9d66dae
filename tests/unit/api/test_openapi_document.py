import json

import pytest

from orchestrator.api.openapi_document import DOCUMENT, check_change, document_text
from orchestrator.domain.errors import UsageError
from orchestrator.wire.api_version import API_VERSION

pytestmark = pytest.mark.unit


def test_the_committed_document_is_that_of_the_code() -> None:
    """If this fails: raise API_VERSION in orchestrator/wire/api_version.py, then `make docs`."""
    assert DOCUMENT.read_text(encoding="utf-8") == document_text()


def test_a_change_needs_another_version() -> None:
    before = DOCUMENT.read_text(encoding="utf-8")
    changed = json.loads(before)
    changed["paths"].pop("/api/v1/nodes")
    with pytest.raises(UsageError, match=API_VERSION):
        check_change(before, json.dumps(changed))
    changed["info"]["version"] = "1.99"
    check_change(before, json.dumps(changed))


def test_every_route_documents_its_errors_and_needs_a_token() -> None:
    document = json.loads(document_text())
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if path.endswith("/health"):
                continue
            where = f"{method} {path}"
            assert {"401", "403", "429", "503"} <= set(operation["responses"]), where
            assert operation["security"] == [{"token": []}], where
            assert operation["description"], where
