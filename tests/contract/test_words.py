"""What users read is plain technical English: phrases that read like a translation stay out of it.

Checked are the documents, the alerts, the texts of the job reference and of `--help`, and every string literal in the
package: messages of errors, warnings and displays.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.contract

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "orchestrator"
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(path for path in (ROOT / "monitoring").rglob("*") if path.suffix in (".md", ".yml", ".yaml")),
        ROOT / "Makefile",
    ]
)
WITH_DOCSTRINGS = ("spec", "cli/commands")
"""Folders whose docstrings users read: in docs/spec.md, and with `--help`."""
BANNED = {
    r"anew": "again",
    r"(?:go|goes|going|gone|went) on": "continue, or in progress",
    r"(?:made|make|makes) again": "recompute, repeat",
    r"(?:want|lack) of (?:memory|workers|nodes)": "out of memory, waiting for workers",
    r"nobody|somebody|whoever": "a noun: no driver, another process, the user",
    r"(?:get|gets|got) over": "recover from",
    r"(?:stand|stands|stood) still": "stop, pause, wait",
    r"keeps? up again": "is no longer slow",
    r"told (?:to|of|that|what|when)|tells? of": "report, notify, request",
    r"meeting each other": "rendezvous",
    r"others than before": "different workers",
}
"""Phrases, and what to write in their place."""
PHRASE = re.compile(rf"(?<![\w-])(?:{'|'.join(BANNED)})(?![\w-])", re.IGNORECASE)


def found_in(text: str) -> list[str]:
    """Each banned phrase of a text with the words around it."""
    flat = " ".join(text.split())
    return [flat[max(0, match.start() - 40) : match.end() + 40] for match in PHRASE.finditer(flat)]


def docstrings_of(tree: ast.Module) -> set[int]:
    """`id` of the nodes of strings that are statements of their own."""
    bodies = [node.body for node in ast.walk(tree) if isinstance(getattr(node, "body", None), list)]
    statements = [statement for body in bodies for statement in body]
    return {id(each.value) for each in statements if isinstance(each, ast.Expr)}


def literals_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of the strings in a module that users may see; those of a folder in `WITH_DOCSTRINGS` too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    shows_docstrings = str(path.relative_to(PACKAGE)).startswith(WITH_DOCSTRINGS)
    left_out = set() if shows_docstrings else docstrings_of(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in left_out:
            yield node.lineno, node.value


def test_a_banned_phrase_is_found_across_lines_and_inside_other_words_not() -> None:
    assert found_in("training goes\n    on without it") == ["training goes on without it"]
    assert found_in("`going_on_from`, a day-long run, Kanew, forgot overnight") == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_are_in_plain_words(document: Path) -> None:
    assert found_in(document.read_text(encoding="utf-8")) == []


def test_messages_are_in_plain_words() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {phrase}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, text in literals_of(path)
        for phrase in found_in(text)
    ]
    assert found == []
