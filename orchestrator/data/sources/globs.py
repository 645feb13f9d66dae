"""File patterns: `*`, `?`, `[...]` within a name, `**` over directories. Hidden files need a pattern that says so."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

_WILD = re.compile(r"[*?\[]")


def is_pattern(text: str) -> bool:
    """Whether `text` has a wildcard in it."""
    return _WILD.search(text) is not None


def translate(pattern: str) -> re.Pattern[str]:
    """A regular expression for whole paths with `/` between names.

    `**/` is any number of directories, none included; a `**` at the end is everything below."""
    out, i = [], 0
    while i < len(pattern):
        if pattern.startswith("**/", i):
            out.append(r"(?:[^/]*/)*")
            i += 3
        elif pattern.startswith("**", i):
            out.append(r".*")
            i += 2
        elif pattern[i] == "*":
            out.append(r"[^/]*")
            i += 1
        elif pattern[i] == "?":
            out.append(r"[^/]")
            i += 1
        elif pattern[i] == "[" and (end := pattern.find("]", i + 2)) > 0:
            body = pattern[i + 1 : end]
            negated, body = body.startswith("!"), body.lstrip("!").replace("\\", r"\\").replace("^", r"\^")
            out.append(f"[{'^/' if negated else ''}{body}]")
            i = end + 1
        else:
            out.append(re.escape(pattern[i]))
            i += 1
    return re.compile("".join(out), re.DOTALL)


def absolute(pattern: str, base: Path) -> str:
    """The pattern as one of absolute paths, `..` resolved by name, `~` expanded."""
    return os.path.normpath(os.path.join(base, Path(pattern).expanduser()))  # noqa: PTH118 (Path keeps "..")


def wildcard_root(pattern: str) -> str:
    """The directory above the first name with a wildcard in an absolute pattern."""
    parts = pattern.split("/")
    first = next(i for i, part in enumerate(parts) if is_pattern(part))
    return "/".join(parts[:first]) or "/"


def walk(pattern: str, exclude: Sequence[re.Pattern[str]]) -> Iterator[str]:
    """Files that match an absolute pattern, in no particular order. Directories that an exclude pattern empties are
    not entered; links to directories are not followed. Raises OSError if a directory cannot be listed."""
    root = wildcard_root(pattern)
    accept = translate(pattern)
    hidden = "/." in pattern
    deep = "**" in pattern
    depth = pattern.count("/")
    stack = [root]
    while stack:
        directory = stack.pop()
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith(".") and not hidden:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if (deep or entry.path.count("/") < depth) and not any(
                        p.fullmatch(entry.path + "/") for p in exclude
                    ):
                        stack.append(entry.path)
                elif accept.fullmatch(entry.path) and entry.is_file():
                    yield entry.path
