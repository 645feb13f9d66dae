"""Prometheus and Grafana on this machine: finding their programs, and finding out whether they run."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from orchestrator.domain.errors import UsageError
from orchestrator.monitor.monitoring_files import ASSETS

VERSION_S = 20.0
"""How long a program may take to print its version."""
GET_PROMETHEUS = (
    "install it: `apt install prometheus`, or unpack an archive of https://prometheus.io/download and add it to PATH. "
    "With Docker: docker compose -f {compose} up -d"
)


@dataclass(frozen=True)
class Binary:
    """A program that runs."""

    path: Path
    version: str


def find_prometheus() -> Binary:
    """From PATH. Raises UsageError, with a hint how to get it."""
    found = shutil.which("prometheus")
    if found is None:
        hint = GET_PROMETHEUS.format(compose=ASSETS.resolve() / "compose.yaml")
        raise UsageError("there is no Prometheus on this machine: no `prometheus` in PATH", hint=hint)
    return checked(Path(found), "--version")


def find_grafana() -> Binary | None:
    """From PATH; None if it is not installed. Raises UsageError if it does not run."""
    for name, argument in (("grafana", "--version"), ("grafana-server", "-v")):
        found = shutil.which(name)
        if found is not None:
            return checked(Path(found), argument)
    return None


def checked(path: Path, argument: str) -> Binary:
    """The program, after it has printed its version. Raises UsageError if it does not."""
    try:
        done = subprocess.run(
            [path, argument], check=False, capture_output=True, text=True, timeout=VERSION_S, errors="replace"
        )
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"{path} does not run: no answer to {argument} within {VERSION_S:g} s") from error
    except OSError as error:
        hint = "is it built for another kind of machine? Install it again, or remove it from PATH"
        raise UsageError(f"{path} does not run: {error.strerror or error}", hint=hint) from error
    said = (done.stdout.strip() or done.stderr.strip()).partition("\n")[0][:200]
    if done.returncode != 0:
        hint = "install it again, or remove it from PATH"
        raise UsageError(f"{path} does not run: {argument} ends with {done.returncode}: {said}", hint=hint)
    words = said.replace(",", " ").split()
    version = next((words[at + 1] for at, word in enumerate(words[:-1]) if word.lower() == "version"), said)
    return Binary(path, version)
