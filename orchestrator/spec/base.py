"""The base class of every part of a job spec."""

from pydantic import BaseModel, ConfigDict


class SpecModel(BaseModel):
    """Frozen, unknown keys forbidden; the docstring under a field is its reference text."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        strict=True,
        protected_namespaces=(),
    )
