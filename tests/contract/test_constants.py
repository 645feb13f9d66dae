"""A constant that several modules share is defined once."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

pytestmark = pytest.mark.contract

ROOT = Path(__file__).resolve().parents[2]
EXCEPTIONS = {
    "ASK_TIMEOUT_S": "a survey of all vaults and a single question to one have limits of their own",
    "CHUNK_BYTES": "what is read at once, of each kind of file: tuned and tested apart",
    "FORMAT_VERSION": "each file format counts its own versions",
    "LONGEST_S": "the limit of a handover and the limit of a compilation",
    "LOOK_S": "each loop has its own period",
    "PAUSE_S": "a probe's pause and the longest round of the driver's loop",
    "POLL_S": "each loop has its own period",
    "SHOWN_LINES": "lines of a stack in an event, and of an output in an incident's page",
    "TICK_S": "the driver's loop and a drill's are two processes",
}
"""Names that mean something else in each of their modules."""


def constants(path: Path) -> dict[str, str]:
    """Public names in capitals that a module assigns, and the expressions."""
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            for name in names:
                if re.fullmatch("[A-Z][A-Z0-9_]+", name):
                    found[name] = value_of(node.value)
    return found


def value_of(node: ast.expr) -> str:
    """Equal for expressions of numbers that have the same value; else the expression itself."""
    expression = ast.unparse(node)
    arithmetic = (ast.Constant, ast.BinOp, ast.operator, ast.UnaryOp, ast.unaryop)
    if all(isinstance(part, arithmetic) for part in ast.walk(node)):
        return repr(eval(expression, {"__builtins__": {}}))
    return expression


def test_a_constant_has_one_definition() -> None:
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path in sorted((ROOT / "orchestrator").rglob("*.py")):
        for name, value in constants(path).items():
            places[name, value].append(str(path.relative_to(ROOT)))
    repeated = {name: found for (name, _), found in places.items() if len(found) > 1}
    assert {name: found for name, found in repeated.items() if name not in EXCEPTIONS} == {}
    assert [name for name in EXCEPTIONS if name not in repeated] == [], "no exception that nothing needs"


def test_numbers_are_compared_by_value(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('AA = 1 << 20\nBB: float = -2.5\nCC = ("s3", "gs")\n_DD = 1\nname = 2\nT = 3\n')
    (tmp_path / "b.py").write_text('AA = 1024 * 1024\nBB = -2.5\nCC = ("s3", "gs")\n')
    assert constants(tmp_path / "a.py") == constants(tmp_path / "b.py")
    assert constants(tmp_path / "a.py") == {"AA": "1048576", "BB": "-2.5", "CC": "('s3', 'gs')"}
