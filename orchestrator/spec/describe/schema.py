"""The JSON Schema (2020-12) of job files, for editors and other programs."""

import json
from typing import Any

from pydantic import BaseModel

from orchestrator.spec.checks.architecture_fields import tables
from orchestrator.spec.checks.check_model import DECIDED_BY_JOB
from orchestrator.spec.checks.deepspeed_keys import ALLOWED, ZERO_ALLOWED
from orchestrator.spec.describe.docstrings import class_doc, field_docs
from orchestrator.spec.job import JobSpec
from orchestrator.spec.loading.fields import models_of

VARIABLE = {"type": "string", "pattern": r"^\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}$"}
"""A value of any type may be taken from the environment."""

_JSON_TYPES = {
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "str": "string",
    "null": "null",
    "list": "array",
    "map": "object",
}


def parts() -> list[type[BaseModel]]:
    """Every part of a job, the job first, each once, in reading order."""
    found: list[type[BaseModel]] = [JobSpec]
    for model in found:
        for info in model.model_fields.values():
            found.extend(inner for inner, _ in models_of(info.annotation) if inner not in found)
    return found


def json_schema() -> dict[str, Any]:
    """The whole schema: descriptions from the field docstrings, unknown keys forbidden, the cheap exclusions.

    What it cannot say (numbers that must fit each other) `load_job` checks.
    """
    schema = JobSpec.model_json_schema()
    definitions = schema.pop("$defs")
    for model in parts():
        target = schema if model is JobSpec else definitions[model.__name__]
        _describe(model, target)
    _exclusions(definitions)
    _deepspeed(definitions["ZeroSpec"]["properties"]["deepspeed"])
    definitions["ModelSpec"]["allOf"] = list(_configs())
    result = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Convoy job",
        **{key: value for key, value in schema.items() if key != "title"},
        "$defs": dict(sorted(definitions.items())),
    }
    _admit_variables(result)
    return result


def schema_text() -> str:
    """The schema as it is printed and committed."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def _describe(model: type[BaseModel], target: dict[str, Any]) -> None:
    docs = field_docs(model)
    target["description"] = class_doc(model)
    for name, value in target["properties"].items():
        value.pop("title", None)
        value["description"] = docs[name]


def _exclusions(definitions: dict[str, Any]) -> None:
    definitions["SourceSpec"]["oneOf"] = [{"required": ["files"]}, {"required": ["hub"]}]
    definitions["TrainSpec"]["oneOf"] = [{"required": [name]} for name in ("steps", "tokens", "epochs")]
    definitions["ModelSpec"]["oneOf"] = [{"required": ["architecture"]}, {"required": ["pretrained"]}]
    definitions["ModelSpec"]["dependentRequired"] = {"revision": ["pretrained"], "config": ["architecture"]}
    definitions["ValidationSpec"]["oneOf"] = [{"required": ["fraction"]}, {"required": ["sources"]}]
    definitions["TokenizerSpec"]["not"] = {"required": ["pretrained", "train"]}
    definitions["ClusterSpec"]["not"] = {
        "required": ["address"],
        "anyOf": [{"required": ["nodes"]}, {"required": ["cpus_per_node"]}],
    }


def _deepspeed(target: dict[str, Any]) -> None:
    target["properties"] = {key: {} for key in sorted(ALLOWED - {"zero_optimization"})}
    target["properties"]["zero_optimization"] = {
        "type": "object",
        "properties": {key: {} for key in sorted(ZERO_ALLOWED)},
        "additionalProperties": False,
    }
    target["additionalProperties"] = False


def _configs() -> list[dict[str, Any]]:
    """Per architecture, the fields of its config: an editor completes them."""
    rules = []
    for name, table in tables().items():
        properties = {}
        for key, field in sorted(table["fields"].items()):
            if key in DECIDED_BY_JOB:
                continue
            properties[key] = {"type": [_JSON_TYPES[kind] for kind in field["kinds"]]}
            if field["default"] is not None:
                properties[key]["default"] = field["default"]
        config = {"type": "object", "properties": properties, "additionalProperties": False}
        rules.append(
            {
                "if": {"properties": {"architecture": {"const": name}}, "required": ["architecture"]},
                "then": {"properties": {"config": config}},
            }
        )
    return rules


def _admit_variables(node: Any) -> None:
    """Let `${NAME}` stand for every number, truth value and choice, as `load_job` does."""
    if isinstance(node, list):
        for item in node:
            _admit_variables(item)
    if not isinstance(node, dict):
        return
    for name, field in node.get("properties", {}).items():
        if isinstance(field, dict) and _is_scalar(field):
            kept = {key: field.pop(key) for key in ("description", "default") if key in field}
            node["properties"][name] = {**kept, "anyOf": [*field.pop("anyOf", [field] if field else []), VARIABLE]}
    for key, value in node.items():
        if key != "if":
            _admit_variables(value)


def _is_scalar(field: dict[str, Any]) -> bool:
    options = field.get("anyOf", [field])
    types = [option.get("type") for option in options]
    return any(
        kind in ("integer", "number", "boolean") or "enum" in option
        for kind, option in zip(types, options, strict=True)
    )
