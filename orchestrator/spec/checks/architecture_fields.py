"""The fields of each architecture's Hugging Face config, from a table made from transformers' source."""

import functools
import json
from importlib import resources
from typing import Any


@functools.cache
def tables() -> dict[str, Any]:
    """Per architecture: `fields` (name to kinds and default) and `aliases` (common name to own name).

    `architectures.json` is written by a script among the tests, and a test compares it with the installed release.
    """
    file = resources.files("orchestrator.spec.checks").joinpath("architectures.json")
    table: dict[str, Any] = json.loads(file.read_text())
    return table
