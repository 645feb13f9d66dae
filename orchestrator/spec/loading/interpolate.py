"""`${NAME}` and `${NAME:-default}` in values; `$${` is a literal `${`."""

import re
from collections.abc import Mapping

from orchestrator.spec.loading.hints import nearest

_TOKEN = re.compile(r"\$\$\{|\$\{(?P<body>[^}]*)(?P<end>\}?)")
_BODY = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>.*))?", re.DOTALL)


def interpolate(text: str, env: Mapping[str, str]) -> tuple[str, bool, list[tuple[str, str]]]:
    """(result, whole, wrong): the text with variables put in, whether the whole text was one variable, and
    (message, hint) for each that could not be. The result is text: it cannot add keys or structure."""
    if "${" not in text:
        return text, False, []
    wrong: list[tuple[str, str]] = []

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$${":
            return "${"
        body = _BODY.fullmatch(match["body"])
        if not match["end"] or body is None:
            message = f"`{match[0]}` is not a variable, expected ${{NAME}} or ${{NAME:-default}}"
            wrong.append((message, "write $${ for a literal ${"))
            return ""
        if body["name"] in env:
            return env[body["name"]]
        if body["default"] is not None:
            return body["default"]
        wrong.append(_unset(body["name"], env))
        return ""

    result = _TOKEN.sub(replace, text)
    match = _TOKEN.fullmatch(text)
    return result, match is not None and match[0] != "$${", wrong


def _unset(name: str, env: Mapping[str, str]) -> tuple[str, str]:
    near = nearest(name, env)
    hint = f"export {name}=..., or give a default: ${{{name}:-value}}"
    if near:
        hint = f"did you mean ${{{near}}}? Otherwise {hint}"
    return f"the environment variable `{name}` is not set", hint


def escape(text: str) -> str:
    """The reverse: text that interpolates to itself."""
    return text.replace("${", "$${")
