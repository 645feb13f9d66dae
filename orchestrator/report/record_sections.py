"""Sections of a report with what was recorded as text: incidents, warnings, spec, proof. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.data.samples.data_verify import Proof
from orchestrator.report.html_text import Html, element
from orchestrator.report.report_proof import ReportedProof
from orchestrator.report.training_sections import nothing, section
from orchestrator.run_facts.run_model import RunFacts

SHOWN_WARNINGS = 50
SHOWN_EPOCHS = 40


@dataclass(frozen=True)
class IncidentPage:
    """A page of `incidents/`."""

    name: str
    title: str
    text: str


def incidents(run: RunFacts, pages: Sequence[IncidentPage], left_out: int) -> Html:
    """Incident pages, numeric faults and warnings. `left_out`: pages that are not shown."""
    parts = [
        element("details", {"class": "incident"}, element("summary", None, page.title), element("pre", None, page.text))
        for page in pages
    ]
    if left_out:
        parts.append(element("p", {"class": "note"}, f"{left_out} older pages are in {run.record.layout.incidents}"))
    if run.events.warnings:
        found = list(run.events.warnings)[-SHOWN_WARNINGS:]
        items = element("ul", {"class": "warnings"}, *(element("li", None, message) for message in found))
        parts.append(element("details", None, element("summary", None, f"Warnings ({len(found)})"), items))
    if not parts:
        parts = [element("p", {"class": "fine"}, "No worker was lost, and there were no warnings.")]
    return section("incidents", "Incidents", *parts)


def proof_section(reported: ReportedProof) -> Html:
    """What the replay of the data found."""
    proof = reported.proof
    if proof is None:
        return section("proof", "Proof of the data", nothing(reported.reason))
    verdict = "Proved: every sample of every epoch was used exactly once, with the right tokens."
    if len(proof.parts) > 1:
        verdict = "Proved part by part: the run continued with other data, and each part was fed what it had to be."
    if proof.mismatch is not None or not proof.ok:
        what = f"step {proof.mismatch.step}: {proof.mismatch.what}" if proof.mismatch else "see `convoy data verify`"
        verdict = f"Not proved: {what}"
    style = {"class": "proof ok" if proof.ok else "proof bad"}
    return section("proof", "Proof of the data", element("p", style, verdict), _proof_table(proof))


def _proof_table(proof: Proof) -> Html:
    rows = [
        ("steps replayed", f"{proof.steps:,}"), ("samples", f"{proof.samples:,}"), ("tokens", f"{proof.tokens:,}"),
        ("steps recomputed", f"{proof.superseded:,}"), ("samples left out", f"{proof.skipped_samples:,}"),
        ("fingerprint of the data", proof.fingerprint),
    ]  # fmt: skip
    rows += [
        (f"{use.source}, epoch {use.epoch}", f"{use.used:,} of {use.of:,} samples, {use.duplicates:,} twice")
        for use in proof.epochs[:SHOWN_EPOCHS]
    ]
    if len(proof.epochs) > SHOWN_EPOCHS:
        rows.append(("more epochs and sources", f"{len(proof.epochs) - SHOWN_EPOCHS:,}"))
    cells = [element("tr", None, element("th", {"scope": "row"}, name), element("td", None, value))
             for name, value in rows]  # fmt: skip
    return element("div", {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": "Proof"},
                   element("table", {"class": "plain facts"}, element("tbody", None, *cells)))  # fmt: skip


def spec_section(spec: str | None) -> Html:
    """The resolved job."""
    if spec is None:
        return section("spec", "Job", nothing("The spec of the run cannot be read."))
    note = element("p", {"class": "note"}, "Defaults, overrides and variables applied; values of environment variables"
                   " and credentials are left out.")  # fmt: skip
    return section("spec", "Job", note, element("pre", {"class": "spec", "tabindex": "0"}, spec))
