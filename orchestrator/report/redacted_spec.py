"""A run's spec as text that may be shown to anyone: values of environment variables and credentials are left out.

A spec should hold no secrets (`resources.env` says so), but people put them there all the same.
"""

import re
from pathlib import Path

import yaml

MOST_BYTES = 256 << 10
REDACTED = "<redacted>"
_SECRET_NAME = re.compile(r"(token|secret|passw|credential|api_?key|access_?key|private_?key)", re.IGNORECASE)
_NO_SECRET = frozenset({"tokens", "loss_chunk_tokens", "tokenizer"})
"""Fields of the spec with such a name that are none."""
_USER_IN_URL = re.compile(r"([a-z][a-z0-9+.-]*://)[^/\s@]+@", re.IGNORECASE)
_SIGNED = re.compile(r"([?&][^=&\s]*(?:sig|signature|token|key|credential)[^=&\s]*=)[^&\s]+", re.IGNORECASE)


def redacted_spec(path: Path) -> str | None:
    """The text of a spec file without secrets; None if it cannot be read, or is no YAML."""
    try:
        with path.open(encoding="utf-8") as file:
            value = yaml.safe_load(file.read(MOST_BYTES))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if not isinstance(value, dict):
        return None
    return yaml.safe_dump(_redacted(value), sort_keys=False, allow_unicode=True, width=100)


def _redacted(value: object, name: str = "") -> object:
    if isinstance(value, dict):
        inside_env = name == "env"
        return {key: REDACTED if inside_env else _redacted(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(item, name) for item in value]
    if isinstance(value, str):
        if name not in _NO_SECRET and _SECRET_NAME.search(name):
            return REDACTED
        return without_credentials(value)
    return value


def without_credentials(text: str) -> str:
    """A text whose URLs have no user, password or signature."""
    return _SIGNED.sub(rf"\1{REDACTED}", _USER_IN_URL.sub(rf"\1{REDACTED}@", text))
