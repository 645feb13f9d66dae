"""Reads the fields of Hugging Face configs out of the installed transformers' source, without importing it.

`python tests/unit/spec/config_tables.py` writes `orchestrator/spec/architectures.json`; a test compares the two.
"""

import ast
import importlib.util
import json
from pathlib import Path
from typing import Any, get_args

from orchestrator.spec.model import Architecture

TARGET = Path(__file__).parents[3] / "orchestrator" / "spec" / "checks" / "architectures.json"
KINDS = {"int": "int", "float": "float", "bool": "bool", "str": "str", "None": "null", "list": "list", "tuple": "list"}


def transformers_dir() -> Path:
    found = importlib.util.find_spec("transformers")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def read_tables() -> dict[str, Any]:
    return {name: read_config(name) for name in get_args(Architecture)}


def read_config(name: str) -> dict[str, Any]:
    path = transformers_dir() / "models" / name / f"configuration_{name}.py"
    classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    (config,) = [node for node in classes if assigned(node, "model_type") == name]
    assert [ast.unparse(base) for base in config.bases] == ["PreTrainedConfig"], f"{name}: fields may be inherited"
    fields = {}
    for node in config.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            fields[node.target.id] = {"kinds": kinds(node.annotation), "default": default(node.value)}
    return {"fields": fields, "aliases": assigned(config, "attribute_map") or {}}


def assigned(config: ast.ClassDef, name: str) -> Any:
    for node in config.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    return None


def kinds(annotation: ast.expr) -> list[str]:
    """JSON kinds of a union such as `int | list[int] | None`, sorted."""
    found = set()
    for option in ast.unparse(annotation).split("|"):
        base = option.strip().partition("[")[0]
        found.add(KINDS.get(base, "map" if base in ("dict", "RopeParameters") else base))
    assert found <= {*KINDS.values(), "map"}, f"a new kind of annotation: {ast.unparse(annotation)}"
    return sorted(found)


def default(value: ast.expr | None) -> Any:
    """The default; that of `interval(...)(default=0.02)` is its keyword."""
    if isinstance(value, ast.Call):
        value = {keyword.arg: keyword.value for keyword in value.keywords}["default"]
    assert value is not None
    return eval(compile(ast.Expression(value), "default", "eval"), {"__builtins__": {}})  # constant arithmetic


if __name__ == "__main__":
    TARGET.write_text(json.dumps(read_tables(), indent=1, sort_keys=True) + "\n")
