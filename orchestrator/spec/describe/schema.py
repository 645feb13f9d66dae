"""The JSON Schema (2020-12) of job files, for editors and other programs."""

import json

from pydantic import BaseModel

from orchestrator.json_values import JsonObject, JsonValue, mapping
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


def json_schema() -> JsonObject:
    """The whole schema: descriptions from the field docstrings, unknown keys forbidden, the cheap exclusions.

    What it cannot say (numbers that must fit each other) `load_job` checks.
    """
    schema: JsonObject = JobSpec.model_json_schema()
    definitions = mapping(schema, "$defs")
    del schema["$defs"]
    for model in parts():
        target = schema if model is JobSpec else mapping(definitions, model.__name__)
        _describe(model, target)
    _exclusions(definitions)
    _deepspeed(mapping(mapping(mapping(definitions, "ZeroSpec"), "properties"), "deepspeed"))
    mapping(definitions, "ModelSpec")["allOf"] = _configs()
    result: JsonObject = {
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


def _describe(model: type[BaseModel], target: JsonObject) -> None:
    docs = field_docs(model)
    target["description"] = class_doc(model)
    properties = mapping(target, "properties")
    for name in properties:
        value = mapping(properties, name)
        value.pop("title", None)
        value["description"] = docs[name]


def _exclusions(definitions: JsonObject) -> None:
    model = mapping(definitions, "ModelSpec")
    mapping(definitions, "SourceSpec")["oneOf"] = [{"required": ["files"]}, {"required": ["hub"]}]
    mapping(definitions, "TrainSpec")["oneOf"] = [{"required": [name]} for name in ("steps", "tokens", "epochs")]
    model["oneOf"] = [{"required": ["architecture"]}, {"required": ["pretrained"]}]
    model["dependentRequired"] = {"revision": ["pretrained"], "config": ["architecture"]}
    mapping(definitions, "ValidationSpec")["oneOf"] = [{"required": ["fraction"]}, {"required": ["sources"]}]
    mapping(definitions, "TokenizerSpec")["not"] = {"required": ["pretrained", "train"]}
    mapping(definitions, "ClusterSpec")["not"] = {
        "required": ["address"],
        "anyOf": [{"required": ["nodes"]}, {"required": ["cpus_per_node"]}],
    }


def _deepspeed(target: JsonObject) -> None:
    properties: JsonObject = {key: {} for key in sorted(ALLOWED - {"zero_optimization"})}
    properties["zero_optimization"] = {
        "type": "object",
        "properties": {key: {} for key in sorted(ZERO_ALLOWED)},
        "additionalProperties": False,
    }
    target["properties"] = properties
    target["additionalProperties"] = False


def _configs() -> list[JsonObject]:
    """Per architecture, the fields of its config: an editor completes them."""
    rules: list[JsonObject] = []
    for name, table in tables().items():
        properties: dict[str, JsonObject] = {}
        for key, field in sorted(table["fields"].items()):
            if key in DECIDED_BY_JOB:
                continue
            properties[key] = {"type": [_JSON_TYPES[kind] for kind in field["kinds"]]}
            if field["default"] is not None:
                properties[key]["default"] = field["default"]
        config: JsonObject = {"type": "object", "properties": properties, "additionalProperties": False}
        rules.append(
            {
                "if": {"properties": {"architecture": {"const": name}}, "required": ["architecture"]},
                "then": {"properties": {"config": config}},
            }
        )
    return rules


def _admit_variables(node: JsonValue) -> None:
    """Let `${NAME}` stand for every number, truth value and choice, as `load_job` does."""
    if isinstance(node, list):
        for item in node:
            _admit_variables(item)
    if not isinstance(node, dict):
        return
    properties = node.get("properties")
    if isinstance(properties, dict):
        for name, field in properties.items():
            if isinstance(field, dict) and _is_scalar(field):
                kept = {key: field.pop(key) for key in ("description", "default") if key in field}
                options = field.pop("anyOf", None)
                choices = options if isinstance(options, list) else [field] if field else []
                properties[name] = {**kept, "anyOf": [*choices, VARIABLE]}
    for key, value in node.items():
        if key != "if":
            _admit_variables(value)


def _is_scalar(field: JsonObject) -> bool:
    options = field.get("anyOf")
    return any(
        isinstance(option, dict) and (option.get("type") in ("integer", "number", "boolean") or "enum" in option)
        for option in (options if isinstance(options, list) else [field])
    )
