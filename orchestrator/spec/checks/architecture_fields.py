"""The fields of each architecture's Hugging Face config, from a table made from transformers' source."""

import functools
import json
from importlib import resources
from typing import TypedDict

from orchestrator.json_values import JsonValue


class ConfigField(TypedDict):
    """A field of an architecture's config."""

    kinds: list[str]
    """Of `int`, `float`, `bool`, `str`, `list`, `map`, `null`."""
    default: JsonValue


class ArchitectureTable(TypedDict):
    """The fields of an architecture's config by name, and common names to its own."""

    fields: dict[str, ConfigField]
    aliases: dict[str, str]


@functools.cache
def tables() -> dict[str, ArchitectureTable]:
    """By architecture.

    `architectures.json` is written by a script among the tests, and a test compares it with the installed release.
    """
    file = resources.files("orchestrator.spec.checks").joinpath("architectures.json")
    table: dict[str, ArchitectureTable] = json.loads(file.read_text())
    return table
