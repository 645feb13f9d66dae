"""Ray's private and undocumented interfaces are used in one folder only: `orchestrator/clusters/ray`."""

import ast
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.contract

PACKAGE = Path(__file__).resolve().parents[2] / "orchestrator"
ADAPTER = PACKAGE / "clusters" / "ray"
PRIVATE = re.compile(
    r"\bray\.[a-z_.]*_private|\bray\._|from ray import _|global_worker|_soft_target_node_id|\bray::|"
    r"\"RAY_|\'RAY_|\bRAY_[A-Za-z_]+=|--node_id=|internal_kv|node has died"
)
DOCUMENTED = re.compile(r"RAY_AUTH_(MODE|TOKEN|TOKEN_PATH)")


def test_private_interfaces_of_ray_are_used_in_one_folder() -> None:
    outside = [path for path in sorted(PACKAGE.rglob("*.py")) if not path.is_relative_to(ADAPTER)]
    assert len(outside) > 100
    found = [
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for path in outside
        for line in path.read_text(encoding="utf-8").splitlines()
        if PRIVATE.search(DOCUMENTED.sub("", line))
    ]
    assert found == [], "put it behind a function with types in orchestrator/clusters/ray"


def test_only_the_adapter_and_the_gang_import_ray() -> None:
    allowed = (ADAPTER, PACKAGE / "gang")
    found = [
        str(path.relative_to(PACKAGE))
        for path in sorted(PACKAGE.rglob("*.py"))
        if not any(path.is_relative_to(folder) for folder in allowed) and _imports_ray(path)
    ]
    assert found == []


def _imports_ray(path: Path) -> bool:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        if any(name.partition(".")[0] == "ray" for name in names):
            return True
    return False
