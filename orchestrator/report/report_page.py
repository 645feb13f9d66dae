"""The report of a run as one HTML page that needs nothing else: no network, no other file. Pure but for its own style
sheet and script, which are read from the package."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from orchestrator import __version__
from orchestrator.report.html_text import Html, element, joined, raw
from orchestrator.report.record_sections import IncidentPage, incidents, proof_section, spec_section
from orchestrator.report.report_proof import ReportedProof
from orchestrator.report.run_sections import bottlenecks, head, history, time_spent
from orchestrator.report.training_sections import learning, memory, speed
from orchestrator.run_facts.quantity_text import when
from orchestrator.run_facts.run_model import RunFacts
from orchestrator.run_facts.why.diagnosis import Diagnosis

SECTIONS = {
    "why": "Bottlenecks", "learning": "Learning", "speed": "Speed", "memory": "Memory", "history": "History",
    "time": "Time", "incidents": "Incidents", "proof": "Proof", "spec": "Job",
}  # fmt: skip
"""Anchors of the sections, and their names in the navigation."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
"""The browser loads nothing from anywhere, whatever a run's texts hold."""


@dataclass(frozen=True)
class ReportContent:
    """All that a report shows."""

    run: RunFacts
    diagnosis: Diagnosis
    proof: ReportedProof
    spec: str | None
    """The redacted spec; None if it cannot be read."""
    pages: Sequence[IncidentPage] = ()
    pages_left_out: int = 0


def report_page(content: ReportContent) -> str:
    """The whole page."""
    run = content.run
    sections = (
        bottlenecks(content.diagnosis), learning(run), speed(run), memory(run), history(run), time_spent(run),
        incidents(run, content.pages, content.pages_left_out), proof_section(content.proof), spec_section(content.spec),
    )  # fmt: skip
    body = element(
        "body", None,
        element("a", {"class": "skip", "href": "#main"}, "To the content"),
        _navigation(), element("main", {"id": "main"}, head(run, run.now_s), *sections, _footer(run)),
        element("script", None, raw(_asset("report.js"))),
    )  # fmt: skip
    title = f"{run.record.id}: Convoy run report"
    page_head = element(
        "head", None,
        element("meta", {"charset": "utf-8"}),
        element("meta", {"http-equiv": "Content-Security-Policy", "content": POLICY}),
        element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("meta", {"name": "color-scheme", "content": "light dark"}),
        element("meta", {"name": "generator", "content": f"Convoy {__version__}"}),
        element("title", None, title), element("style", None, raw(_asset("report.css"))),
    )  # fmt: skip
    return f"<!doctype html>\n{element('html', {'lang': 'en'}, page_head, body)}\n"


def _navigation() -> Html:
    links = joined(element("li", None, element("a", {"href": f"#{key}"}, name)) for key, name in SECTIONS.items())
    return element("nav", {"aria-label": "Sections"}, element("ol", None, links))


def _footer(run: RunFacts) -> Html:
    made = f"Written by Convoy {__version__}, {when(run.now_s)}."
    version = run.events.convoy_version
    trained = f" The run was trained with Convoy {version}." if version and version != __version__ else ""
    return element("footer", None, made + trained)


def _asset(name: str) -> str:
    return files("orchestrator.report").joinpath(name).read_text(encoding="utf-8")
