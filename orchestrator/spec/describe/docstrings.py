"""The docstring under each field of a class, read from the source when a schema or a reference is made."""

import ast
import inspect
import textwrap


def field_docs(model: type) -> dict[str, str]:
    """Field name to its text, on one line. Only the class's own fields, not inherited ones."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(definition, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, after in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            docs[field.target.id] = " ".join(after.value.value.split())
    return docs


def class_doc(model: type) -> str:
    """The docstring of the class itself, on one line."""
    return " ".join((model.__doc__ or "").split())
