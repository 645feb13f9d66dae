"""Writing a run's report: from `convoy report`, and at the end of a run."""

import re
import sys
import time
from pathlib import Path

from orchestrator.atomic_files import write_bytes
from orchestrator.domain.events import RunState
from orchestrator.domain.run_layout import RunLayout
from orchestrator.report.record_sections import IncidentPage
from orchestrator.report.redacted_spec import redacted_spec, without_credentials
from orchestrator.report.report_page import ReportContent, report_page
from orchestrator.report.report_proof import PROOF_TOKENS_AT_END, proof_of
from orchestrator.run_facts.run_model import read_facts
from orchestrator.run_facts.step_history import Deadline, OutOfTime
from orchestrator.run_facts.why.diagnosis import diagnose
from orchestrator.store.run_store import RunRecord, read_record

SHOWN_PAGES = 30
"""Incident pages, the newest."""
PAGE_BYTES = 16 << 10
"""Of one of them."""
END_LIMIT_S = 20.0
"""For reading the steps at the end of a run: some 300,000 of them. Of a longer run `convoy report` writes the
report."""
STOP_LIMIT_S = 1.5
"""The same after a stop, which someone waits for."""


def write_report(
    record: RunRecord, target: Path, now_s: float, proof_tokens: int, deadline: Deadline | None = None
) -> int:
    """Write the report of a run to a file, which is replaced whole; its size in bytes. `proof_tokens`: if the run
    consumed more, its data is not replayed. Raises OSError, and OutOfTime if the steps cannot be read in time."""
    run = read_facts(record, now_s, deadline)
    if not run.steps.complete:
        raise OutOfTime(f"it has too many steps; `convoy report {record.id}` writes it")
    pages, left_out = incident_pages(record.layout)
    spec = redacted_spec(record.layout.spec)
    content = ReportContent(run, diagnose(run), proof_of(run, proof_tokens), spec, pages, left_out)
    data = report_page(content).encode()
    write_bytes(target.absolute(), data, durable=False)
    return len(data)


def write_report_at_end(layout: RunLayout) -> None:
    """Write `report.html` at the end of a run. Whatever fails is reported once, as a line on stderr, and the end of the
    run does not depend on it."""
    try:
        record = read_record(layout)
        if record is not None:
            limit_s = STOP_LIMIT_S if record.state is RunState.STOPPED else END_LIMIT_S
            write_report(record, layout.report, time.time(), PROOF_TOKENS_AT_END, Deadline(limit_s))
    except OutOfTime as reason:
        print(f"note: {layout.report} was not written: {reason}", file=sys.stderr)
    except Exception as error:  # noqa: BLE001  # a report must never make a run fail
        print(f"warning: {layout.report} was not written: {type(error).__name__}: {error}", file=sys.stderr)


def incident_pages(layout: RunLayout) -> tuple[list[IncidentPage], int]:
    """The newest incident pages, oldest first, and how many older ones there are."""
    try:
        paths = sorted(layout.incidents.glob("*.md"))
    except OSError:
        return [], 0
    found = [page for path in paths[-SHOWN_PAGES:] if (page := _page(path)) is not None]
    return found, max(0, len(paths) - SHOWN_PAGES)


def _page(path: Path) -> IncidentPage | None:
    try:
        with path.open("rb") as file:
            text = file.read(PAGE_BYTES + 1).decode("utf-8", "replace")
    except OSError:
        return None
    if len(text) > PAGE_BYTES:
        text = f"{text[:PAGE_BYTES]}\n... (the rest is in {path})"
    title = re.match(r"# (.+)", text)
    return IncidentPage(path.name, title.group(1) if title else path.stem, without_credentials(text))
