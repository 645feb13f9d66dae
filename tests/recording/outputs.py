"""Refreshes what commands print in a document: runs the commands of each marked block and replaces their output.

A block is a console block between `<!-- NAME begin -->` and `<!-- NAME end -->`; lines that begin with `$ ` are the
commands.
"""

import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "getting-started.md"
SHOWN_ROOT = "/home/me/convoy"
"""Stands for the directory of the checkout."""
INSTEAD = {"make quickstart": "convoy run jobs/quickstart.yaml"}
"""What a command comes to once everything is installed."""
TIMEOUT_S = 1200.0
ELLIPSIS = "..."
FIRST_STEPS = 2
BLOCK = re.compile(r"(<!-- ([\w-]+) begin -->\n```console\n)(.*?)(```\n<!-- \2 end -->)", re.DOTALL)
STEP = re.compile(r"\[ *[\d:]+\] step (\d+)/(\d+) ")


def refresh(document: str, run: Callable[[str], str]) -> str:
    """The document with the output of every marked block as `run` gives it for each command."""

    def block(match: re.Match[str]) -> str:
        text = "".join(
            f"$ {command}\n" + "".join(f"{line}\n" for line in excerpt(run(command.replace("\\\n", " ")).splitlines()))
            for command in commands(match[3])
        )
        return f"{match[1]}{text}{match[4]}"

    return BLOCK.sub(block, document)


def commands(block: str) -> list[str]:
    """Those of a console block; one that is continued by a backslash has several lines."""
    return re.findall(r"^\$ ((?:.*\\\n)*.*)$", block, re.MULTILINE)


def excerpt(lines: Sequence[str]) -> list[str]:
    """What is worth reading: of a drill its fault and its score, of other runs all but most steps."""
    score = next((index for index, line in enumerate(lines) if line.startswith("fault  ")), None)
    return fewer_steps(lines) if score is None else [ELLIPSIS, *around_failure(lines), ELLIPSIS, *lines[score:]]


def around_failure(lines: Sequence[str]) -> list[str]:
    """From the last step before a worker failed to the recovery's end; nothing where none failed."""
    failed = next((index for index, line in enumerate(lines) if re.search(r"worker \d+ failed", line)), None)
    if failed is None:
        return []
    first = max((index for index in range(failed) if STEP.match(lines[index])), default=failed)
    last = next((index for index in range(failed, len(lines)) if "recovered in" in lines[index]), len(lines) - 1)
    return list(lines[first : last + 1])


def fewer_steps(lines: Sequence[str]) -> list[str]:
    """Only the first steps, the last one, and what is told between them."""
    kept: list[str] = []
    seen = 0
    for line in lines:
        step = STEP.match(line)
        seen += step is not None
        if step is None or seen <= FIRST_STEPS or step[1] == step[2]:
            kept.append(line)
        elif kept[-1] != ELLIPSIS:
            kept.append(ELLIPSIS)
    return kept


def shell(environment: Mapping[str, str], shown: Mapping[str, str]) -> Callable[[str], str]:
    """Run commands in the checkout and return what they print; `shown`: absolute paths and what to print instead.

    Raises SystemExit if a command fails.
    """
    paths = {**shown, **{_relative(path): _relative(instead) for path, instead in shown.items()}}

    def run(command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", INSTEAD.get(command, command)],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT_S,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"error: {command} ended with {done.returncode}\n{done.stdout}")
        text = done.stdout
        for path, instead in {**paths, str(ROOT): SHOWN_ROOT}.items():
            text = text.replace(path, instead)
        return text

    return run


def _relative(path: str) -> str:
    return str(Path(path).relative_to(ROOT))
