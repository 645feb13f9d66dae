"""The base class of every part of a job spec."""

from pydantic import BaseModel, ConfigDict


class SpecModel(BaseModel):
    """Frozen, unknown keys forbidden; the docstring under a field is its reference text.

    `docstrings.field_docs` reads those texts when they are needed (JSON Schema, reference). Pydantic's own
    `use_attribute_docstrings` would parse the source at every start of every command.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )
