"""The report of a run, drawn by a real browser: on a desktop and on a phone, dark and light."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.goodput.ledger_result import Cost
from orchestrator.goodput.time_class import LossCause
from orchestrator.report.record_sections import IncidentPage
from orchestrator.report.report_page import SECTIONS, ReportContent, report_page
from orchestrator.report.report_proof import ReportedProof
from orchestrator.run_facts.why.diagnosis import diagnose
from tests.browser import Browser, Look, browser
from tests.unit.report.test_report import HOSTILE, hostile_events
from tests.unit.run_facts.made import Rank, event, facts, ledger, step

pytestmark = [pytest.mark.cluster, pytest.mark.needs("chromium")]

MEASURE = """
(() => {
  const luminance = ([r, g, b]) => {
    const part = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const colour = (text) => text.match(/[\\d.]+/g).map(Number);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const found = colour(getComputedStyle(at).backgroundColor);
      if (found.length < 4 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const pale = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility()) continue;
    const a = luminance(colour(getComputedStyle(element).color)), b = luminance(ground(element));
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) pale.push([element.outerHTML.slice(0, 120), contrast]);
  }
  return {
    width: document.documentElement.scrollWidth,
    sections: [...document.querySelectorAll("section")].map((each) => each.id),
    empty: [...document.querySelectorAll("section")].filter((each) => each.innerText.length < 20).length,
    figures: document.querySelectorAll("figure.chart svg path.line, figure.chart svg path.area").length,
    tip: document.querySelector("figure.chart .tip:not([hidden])")?.innerText ?? "",
    pale,
  };
})()
"""
"""Width, sections, contrast of all text with what lies behind it (WCAG 2.1, 1.4.3), and what the pointer shows."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run that had everything, with hostile texts everywhere."""
    ranks = [Rank(data_s=0.2, forward_s=0.2, backward_s=0.4, collective_s=0.1)] * 3
    reports = [step(number, *ranks, Rank(forward_s=0.7, backward_s=0.4)) for number in range(1, 1200)]
    run = facts(reports, [*hostile_events(), event_of_validation(100), event_of_validation(900)], ended_s=1300.0)
    spent = ledger(1300.0, workers=4, productive=4400.0, recomputed=600.0, startup=150.0, evaluation=50.0)
    spent = replace(spent, cost=Cost(12.5, 5.2, {LossCause.NODE_DIED: 1.5}))
    run = replace(run, record=replace(run.record, reason=HOSTILE), ledger=spent, ranks=reports[-1].ranks.every)
    pages = [IncidentPage("incident-001.md", HOSTILE, HOSTILE * 20)]
    content = ReportContent(run, diagnose(run), ReportedProof(None, HOSTILE), f"name: {HOSTILE * 3}\n", pages)
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(report_page(content), encoding="utf-8")
    return path


def event_of_validation(number: int) -> Any:
    from orchestrator.domain.events import EvalFinished

    return event(EvalFinished, float(number), step=number, loss=8.0 / number)


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_it_is_drawn_without_errors(page: Path, chromium: Browser, width: int, dark: bool) -> None:
    look: Look = chromium.look(page, width, MEASURE, dark, hover="figure.chart .plot svg")
    assert (look.console, look.requests) == ([], [])
    found = look.value
    assert found["width"] == width, "nothing is wider than the window"
    assert found["sections"] == list(SECTIONS)
    assert found["empty"] == 0
    assert found["figures"] >= 12
    assert found["pale"] == []
    assert "training loss" in found["tip"], found
    assert len(look.picture) > 30_000
