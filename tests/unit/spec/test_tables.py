"""The static tables against the installed sources they were read from, and the generated files against the code."""

import ast
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator.spec.checks import deepspeed_keys as keys
from orchestrator.spec.checks.architecture_fields import tables
from orchestrator.spec.describe.docstrings import field_docs
from orchestrator.spec.describe.reference import reference_markdown
from orchestrator.spec.describe.schema import parts, schema_text
from tests.unit.spec.config_tables import read_tables

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
WRITE = "python -m orchestrator.spec.describe.reference"


def deepspeed_dir() -> Path:
    found = importlib.util.find_spec("deepspeed")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def test_architecture_table_is_that_of_the_installed_transformers() -> None:
    assert tables() == read_tables(), "run: python -m tests.unit.spec.config_tables"


def test_committed_schema_and_reference_are_current() -> None:
    assert (ROOT / "jobs" / "job.schema.json").read_text() == schema_text(), WRITE
    assert (ROOT / "docs" / "spec.md").read_text() == reference_markdown(), WRITE


def test_every_field_has_a_text_and_stands_in_the_reference() -> None:
    reference = reference_markdown()
    for model in parts():
        docs = field_docs(model)
        assert set(docs) == set(model.model_fields)
        for name, text in docs.items():
            assert f"| `{name}` |" in reference
            assert text.replace("|", "\\|") in reference


def class_fields(path: Path, name: str) -> set[str]:
    """Fields of a pydantic class by the names a config uses: the alias where there is one."""
    (model,) = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.ClassDef) and n.name == name]
    names = set()
    for node in model.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            alias = re.search(r"alias='([a-z0-9_]+)'", ast.unparse(node))
            names.add(alias[1] if alias else node.target.id)
    return names


def removed(name: str) -> set[str]:
    tree = ast.parse((deepspeed_dir() / "runtime" / "config.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            assert isinstance(node.value, ast.Dict)
            return {ast.literal_eval(key) for key in node.value.keys if key is not None}
    raise AssertionError(name)


def test_zero_keys_are_those_of_the_installed_deepspeed() -> None:
    fields = class_fields(deepspeed_dir() / "runtime" / "zero" / "config.py", "DeepSpeedZeroConfig")
    assert fields == keys.ZERO_ALLOWED | keys.ZERO_DECIDED.keys()
    assert removed("_REMOVED_ZERO_CONFIG_KEYS") == keys.ZERO_REMOVED


def test_top_level_keys_are_those_of_the_installed_deepspeed() -> None:
    assert removed("_REMOVED_TOP_LEVEL_CONFIG_KEYS") == keys.REMOVED
    source = "\n".join(path.read_text() for path in deepspeed_dir().rglob("*config*.py"))
    source += "\n".join(path.read_text() for path in deepspeed_dir().rglob("constants.py"))
    source += (deepspeed_dir() / "__init__.py").read_text()
    for key in keys.ALLOWED | keys.DECIDED.keys():
        assert f'"{key}"' in source or f"'{key}'" in source, key


def test_every_key_deepspeed_reads_at_the_top_level_is_known() -> None:
    """The getters of DeepSpeedConfig name their keys by constants: every one of those is in a table."""
    config = (deepspeed_dir() / "runtime" / "config.py").read_text()
    constants: dict[str, Any] = {}
    for path in (deepspeed_dir() / "runtime").rglob("constants.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                constants[ast.unparse(node.targets[0])] = node.value.value
    read = re.findall(
        r"(?:get_scalar_param\(param_dict, |(?<![a-z_])param_dict\.get\()([A-Z_]+|['\"][a-z_]+['\"])", config
    )
    names = {constants[name] if name.isupper() else name.strip("'\"") for name in read}
    assert len(names) > 20
    assert names - {"enabled"} <= keys.ALLOWED | keys.DECIDED.keys()


def test_schema_judges_jobs_as_the_loader_does() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    yaml = pytest.importorskip("yaml")
    schema = json.loads(schema_text())
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    for path in sorted((ROOT / "jobs").glob("*.yaml")):
        text = re.sub(r"\b(\d+)e(-?\d+)", r"\1.0e+\2", path.read_text()).replace("e+-", "e-")
        job = yaml.safe_load(text)
        assert [error.message for error in validator.iter_errors(job)] == [], path.name
        for broken in (
            job | {"lr": 1},
            job | {"train": job["train"] | {"steps": 5, "tokens": 5}},
            job | {"train": job["train"] | {"lr": "fast"}},
            job | {"model": job["model"] | {"architecture": "gpt2", "config": {"n_layers": 3}}},
            job | {"cluster": {"nodes": 2, "address": "auto"}},
            job | {"zero": {"deepspeed": {"fp16": {}}}},
        ):
            assert not validator.is_valid(broken), (path.name, broken)
