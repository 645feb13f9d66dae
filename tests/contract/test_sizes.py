"""House rules on shape: small files, small functions, few parameters, names that say something."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.contract

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*(ROOT / "orchestrator").rglob("*.py"), *(ROOT / "tests").rglob("*.py")])
MAX_FILE_LINES = 420
MAX_FUNCTION_LINES = 55
MAX_PARAMETERS = 9
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, Function):
            yield node


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_is_something_to_check() -> None:
    assert len(SOURCES) > 40


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_file_is_small_and_well_named(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_FILE_LINES, f"{relative(path)} has {lines} lines"
    assert path.stem not in BANNED_NAMES, f"{relative(path)}: the name says nothing"


@pytest.mark.parametrize("path", [p for p in SOURCES if "orchestrator" in p.parts], ids=relative)
def test_functions_are_small(path: Path) -> None:
    for function in functions(path):
        size = (function.end_lineno or function.lineno) - function.lineno + 1
        assert size <= MAX_FUNCTION_LINES, f"{relative(path)}:{function.lineno} {function.name} has {size} lines"
        parameters = len(function.args.args) + len(function.args.kwonlyargs)
        assert parameters <= MAX_PARAMETERS, f"{relative(path)}:{function.lineno} {function.name}: {parameters}"
        assert function.args.kwarg is None, f"{relative(path)}:{function.lineno} {function.name} takes **kwargs"


@pytest.mark.parametrize("path", [p for p in SOURCES if "orchestrator" in p.parts], ids=relative)
def test_nothing_is_swallowed(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ExceptHandler):
            continue
        catches_all = node.type is None or getattr(node.type, "id", "") in {"Exception", "BaseException"}
        silent = all(isinstance(statement, ast.Pass | ast.Continue) for statement in node.body)
        assert not (catches_all and silent), f"{relative(path)}:{node.lineno} swallows every exception"


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name.startswith("test_")], ids=relative)
def test_tests_are_marked(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "pytestmark" in text or "@pytest.mark." in text, f"{relative(path)} has no marker"
