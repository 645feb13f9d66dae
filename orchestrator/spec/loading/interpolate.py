"""`${NAME}` and `${NAME:-default}` in values, `${runs.NAME.export}` too; `$${` is a literal `${`."""

import re
from collections.abc import Mapping

from orchestrator.spec.loading.hints import nearest

_TOKEN = re.compile(r"\$\$\{|\$\{(?P<body>[^}]*)(?P<end>\}?)")
_BODY = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>.*))?", re.DOTALL)

_RUN = re.compile(r"runs\.(?P<run>[A-Za-z0-9][-A-Za-z0-9]*)\.(?P<field>\w+)")
RUN_FIELDS = ("export",)
"""What can be named of another run."""


def run_key(run: str, field: str = "export") -> str:
    """The variable that `${runs.RUN.FIELD}` is replaced by."""
    return f"runs.{run}.{field}"


def interpolate(text: str, env: Mapping[str, str]) -> tuple[str, bool, list[tuple[str, str]]]:
    """(result, whole, wrong): the text with variables put in, whether the whole text was one variable, and
    (message, hint) for each that could not be. The result is text: it cannot add keys or structure."""
    if "${" not in text:
        return text, False, []
    wrong: list[tuple[str, str]] = []

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$${":
            return "${"
        of_run = _RUN.fullmatch(match["body"]) if match["end"] else None
        if of_run is not None:
            if match["body"] not in env:
                wrong.append(_unknown_run(of_run["run"], of_run["field"], env))
            return env.get(match["body"], "")
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


def _unknown_run(run: str, field: str, env: Mapping[str, str]) -> tuple[str, str]:
    if field not in RUN_FIELDS:
        return f"`{field}` is nothing that a run has, expected `${{runs.{run}.export}}`", "its export is a directory"
    known = sorted(name.split(".")[1] for name in env if _RUN.fullmatch(name))
    near = nearest(run, known)
    if near:
        return f"this job comes after no run `{run}`", f"did you mean ${{runs.{near}.export}}?"
    return (
        f"this job comes after no run `{run}`",
        f"submit it to a server with `convoy submit --after {run}`, or add it to `schedule.after`",
    )


def _unset(name: str, env: Mapping[str, str]) -> tuple[str, str]:
    near = nearest(name, env)
    hint = f"export {name}=..., or give a default: ${{{name}:-value}}"
    if near:
        hint = f"did you mean ${{{near}}}? Otherwise {hint}"
    return f"the environment variable `{name}` is not set", hint


def escape(text: str) -> str:
    """The reverse: text that interpolates to itself."""
    return text.replace("${", "$${")
