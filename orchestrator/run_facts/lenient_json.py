"""Reading records that a newer or older version wrote, or that are damaged: what does not fit is absent, not an
error."""

from orchestrator.json_values import JsonFields


def number_or_none(fields: JsonFields, key: str) -> float | None:
    """A number; None if the field is missing or something else."""
    value = fields.get(key)
    if type(value) is float:  # most are: a run may have a hundred million of them
        return value
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else None


def whole_or_none(fields: JsonFields, key: str) -> int | None:
    """A whole number; None if the field is missing or something else."""
    value = fields.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def text_or_none(fields: JsonFields, key: str) -> str | None:
    """A text; None if the field is missing or something else."""
    value = fields.get(key)
    return value if isinstance(value, str) else None


def fields_of_object(fields: JsonFields, key: str) -> JsonFields:
    """An object; empty if the field is missing or something else."""
    value = fields.get(key)
    return value if isinstance(value, dict) else {}


def list_of_objects(fields: JsonFields, key: str) -> list[JsonFields]:
    """The objects of a list; empty if the field is missing or something else."""
    value = fields.get(key)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
