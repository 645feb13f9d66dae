"""An export as a fact on disk: which step it is of, and whether all of it is there."""

import json
import shutil
from pathlib import Path

from orchestrator.domain.run_layout import EXPORT_IN_WORK, RunLayout
from orchestrator.json_values import JsonFields, integer, mapping, optional, parse_object

PROVENANCE = "convoy.json"
"""Records which step an export was made from and which files belong to it; transformers ignores it."""


def provenance(directory: Path, facts: JsonFields) -> str:
    """The text of `PROVENANCE` for an export whose other files are in `directory`: `facts`, which name the `step`, and
    the size in bytes of each file."""
    files = {
        str(path.relative_to(directory)): path.stat().st_size
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != PROVENANCE
    }
    return json.dumps({**facts, "files": files}, indent=1) + "\n"


def exported_step(directory: Path) -> int | None:
    """The step of a complete export; None if `directory` contains none."""
    step, problem = _read(directory)
    return step if problem is None else None


def export_problem(directory: Path, step: int) -> str | None:
    """Why `directory` does not contain a complete export of `step`; None if it does."""
    found, problem = _read(directory)
    if problem is None and found != step:
        return f"the export in {directory} is of step {found}, not {step}"
    return problem


def clear_unfinished(layout: RunLayout) -> None:
    """Remove what exports of a run have left that did not come to their end. Only while no gang runs."""
    for left in layout.root.glob(f"{EXPORT_IN_WORK}*"):
        shutil.rmtree(left, ignore_errors=True)


def _read(directory: Path) -> tuple[int | None, str | None]:
    if not directory.is_dir():
        return None, f"there is no export in {directory}"
    try:
        facts = parse_object((directory / PROVENANCE).read_bytes())
        step, files = integer(facts, "step"), optional(mapping, facts, "files") or {}
    except OSError as error:
        return None, f"{directory} contains no export: {PROVENANCE}: {error.strerror}"
    except ValueError:
        return None, f"{directory / PROVENANCE} is damaged"
    for name, size_bytes in files.items():
        try:
            found_bytes = (directory / name).stat().st_size
        except OSError:
            return step, f"the export in {directory} lacks {name}"
        if found_bytes != size_bytes:
            return step, f"{directory / name} has {found_bytes} bytes, expected {size_bytes}"
    return step, None
