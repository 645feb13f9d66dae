"""PyYAML's syntax errors, in words for people who did not read the YAML specification."""

import re
from collections.abc import Callable
from typing import Protocol

import yaml

from orchestrator.spec.spec_errors import Place, Problem


class Mark(Protocol):
    """A place in the text, as PyYAML's scanner and its variant in C have it; both numbers count from 0."""

    @property
    def line(self) -> int: ...

    @property
    def column(self) -> int: ...


def explain_syntax_error(error: yaml.YAMLError, text: str, place: Callable[[Mark], Place]) -> Problem:
    """One problem at the place where reading stopped. `place` turns a PyYAML mark into a place."""
    if isinstance(error, yaml.reader.ReaderError):
        before = text[: error.position]
        line, column = before.count("\n"), error.position - (before.rfind("\n") + 1)
        mark = yaml.Mark("", error.position, line, column, None, 0)
        name = f"U+{ord(error.character):04X}" if isinstance(error.character, str) else f"U+{error.character:04X}"
        return Problem(place(mark), f"the character {name} is not allowed in YAML", "delete it")
    if not isinstance(error, yaml.MarkedYAMLError):
        return Problem(place(yaml.Mark("", 0, 0, 0, None, 0)), f"this is not YAML that can be read: {error}")
    mark = error.problem_mark or error.context_mark or yaml.Mark("", 0, 0, 0, None, 0)
    shows_later = "could not find expected ':'" in (error.problem or "") or _unquoted_star(error)
    if shows_later and error.context_mark:
        mark = error.context_mark  # where the mistake is; PyYAML meets it further on
    message, hint = _words(error, text, mark)
    return Problem(place(mark), message, hint)


_GLUED = re.compile(r"[-\s]*([A-Za-z_]\w*):([^\s/:].*)")


def _unquoted_star(error: yaml.MarkedYAMLError) -> bool:
    context = error.context or ""
    return "scanning an alias" in context or "scanning an anchor" in context


def _words(error: yaml.MarkedYAMLError, text: str, mark: Mark) -> tuple[str, str | None]:
    problem = error.problem or ""
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    before = lines[mark.line - 1] if 0 < mark.line <= len(lines) else ""
    if "'\\t'" in problem or "\t" in line[: len(line) - len(line.lstrip())] or "\t" in line[: mark.column + 1]:
        return "a tab is used where only spaces are allowed", "replace every tab with spaces; most editors can do this"
    if line.startswith(("<<<<<<<", "=======", ">>>>>>>")):
        return "a marker of an unfinished merge", "settle the conflict and remove the marker lines"
    if "mapping values are not allowed" in problem:
        glued = _GLUED.fullmatch(before)
        if glued:
            return f"the line above has no space after its `:`, expected `{glued[1]}: {glued[2]}`", "add the space"
        hint = "quote text that holds `: `, and check the indentation of this line and the one above"
        return "a `:` is used where no new key can start", hint
    if "could not find expected ':'" in problem:
        return "this line has no `:`, expected `key: value`", "add the `:`, with a space after it"
    if "expected <block end>" in problem:
        hint = "keys of one section start in the same column"
        if before.strip() and not before.rstrip().endswith(":"):
            hint += f"; compare with `{before.strip()[:60]}` above"
        return "the indentation does not match any line above", hint
    if "found unexpected end of stream" in problem or "found unexpected document" in problem:
        opened = f" opened on line {error.context_mark.line + 1}" if error.context_mark else ""
        return f"the text ends inside a quoted text{opened}", "close the quotes"
    if "expected ',' or" in problem and line[max(0, mark.column - 1) : mark.column + 1] == "${":
        hint = "quote it; if a number is expected, write the section as `key: value` lines instead"
        return "a variable is unquoted inside [ ] or { }", hint
    if "expected ',' or" in problem:
        close = "]" if "sequence" in (error.context or "") else "}"
        opened = f" opened on line {error.context_mark.line + 1}" if error.context_mark else ""
        return f"the list or mapping{opened} is not closed, expected `,` or `{close}`", f"add `{close}` or a `,`"
    if "found character" in problem and "cannot start any token" in problem:
        found = line[mark.column] if mark.column < len(line) else "this character"
        return f"a value cannot start with `{found}` unless it is quoted", f"put quotes around it: '{found}...'"
    if _unquoted_star(error):
        found = line[mark.column : mark.column + 1] or "*"
        return (
            f"a text that begins with `{found}` must be quoted",
            f'write it as "{found}..."; is a quote missing above?',
        )
    context = f" ({error.context})" if error.context else ""
    return f"this is not valid YAML: {problem}{context}", "check indentation, quotes and brackets near here"
