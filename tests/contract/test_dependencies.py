"""The package imports nothing that it does not declare."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "orchestrator"
TRACKERS = ("tensorboard", "wandb")
"""Extras whose packages are imported in their own processes."""
COMES_WITH = {"pydantic_core": "pydantic", "annotated_types": "pydantic"}
"""Modules that another dependency brings in a version of its own choice."""


OF_DEVELOPERS = {"grafana_foundation_sdk": "dashboards/grafana_json.py"}
"""What the extra `dev` brings, and the one module that imports it: it makes files that are committed."""


@pytest.mark.contract
def test_the_package_imports_only_what_it_declares() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [text for name in TRACKERS for text in project["optional-dependencies"][name]]
    texts = [*project["dependencies"], *extras]
    declared = {re.split(r"[\[<>=]", text)[0].lower().replace("-", "_") for text in texts}
    declared = {{"pyyaml": "yaml", "nvidia_ml_py": "pynvml"}.get(name, name) for name in declared}
    declared |= {name for name, module in OF_DEVELOPERS.items() if importers_of(name) == [module]}
    imported = {COMES_WITH.get(name, name) for path in PACKAGE.rglob("*.py") for name in imports_of(path)}
    assert imported - declared - sys.stdlib_module_names - {"orchestrator"} == set()


def importers_of(name: str) -> list[str]:
    return [str(path.relative_to(PACKAGE)) for path in sorted(PACKAGE.rglob("*.py")) if name in imports_of(path)]


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}
