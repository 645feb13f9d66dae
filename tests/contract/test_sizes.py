"""House rules on shape: small files, small functions, few parameters, names that say something."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.contract

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*(ROOT / "orchestrator").rglob("*.py"), *(ROOT / "tests").rglob("*.py")])
PRODUCT = [path for path in SOURCES if "orchestrator" in path.relative_to(ROOT).parts]
MAX_FILE_LINES = 420
MAX_FUNCTION_LINES = 55
MAX_FOLDER_FILES = 16
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


def test_files_are_small_and_well_named() -> None:
    sizes = {relative(path): path.read_text(encoding="utf-8").count("\n") for path in SOURCES}
    assert {name: lines for name, lines in sizes.items() if lines > MAX_FILE_LINES} == {}
    assert [relative(path) for path in SOURCES if path.stem in BANNED_NAMES] == [], "such a name says nothing"


def test_folders_of_the_package_are_small() -> None:
    modules = [path for path in PRODUCT if path.name != "__init__.py"]
    counts = Counter(relative(path.parent) for path in modules)
    assert {folder: count for folder, count in counts.items() if count > MAX_FOLDER_FILES} == {}


def test_a_name_is_that_of_one_module_and_of_one_class() -> None:
    stems = Counter(path.stem for path in PRODUCT if not path.stem.startswith("__"))
    classes = Counter(
        node.name
        for path in PRODUCT
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in (stems | classes).items() if count > 1] == []


def test_functions_are_small() -> None:
    wrong = []
    for path, function in ((each, function) for each in PRODUCT for function in functions(each)):
        place = f"{relative(path)}:{function.lineno} {function.name}"
        size = (function.end_lineno or function.lineno) - function.lineno + 1
        parameters = len(function.args.args) + len(function.args.kwonlyargs)
        if size > MAX_FUNCTION_LINES:
            wrong.append(f"{place} has {size} lines")
        if parameters > MAX_PARAMETERS:
            wrong.append(f"{place} has {parameters} parameters")
        if function.args.kwarg is not None:
            wrong.append(f"{place} takes **kwargs")
    assert wrong == []


def test_no_exception_is_swallowed() -> None:
    wrong = []
    for path in PRODUCT:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ExceptHandler):
                continue
            catches_all = node.type is None or getattr(node.type, "id", "") in {"Exception", "BaseException"}
            silent = all(isinstance(statement, ast.Pass | ast.Continue) for statement in node.body)
            if catches_all and silent:
                wrong.append(f"{relative(path)}:{node.lineno}")
    assert wrong == []


def test_tests_are_marked() -> None:
    texts = {relative(path): path.read_text(encoding="utf-8") for path in SOURCES if path.name.startswith("test_")}
    marks = ("pytestmark", "@pytest.mark.")
    assert [name for name, text in texts.items() if not any(mark in text for mark in marks)] == []
