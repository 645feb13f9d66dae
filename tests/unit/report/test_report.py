"""The whole page: what is in it, what cannot get into it, and how large it becomes."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator.cli.main import cli
from orchestrator.domain.events import EVENT_TYPES, CheckpointSaved, Event, RecoveryStarted, TrainingPlanned
from orchestrator.domain.events.event_codec import fields_of
from orchestrator.domain.run_layout import RunLayout
from orchestrator.report.record_sections import IncidentPage
from orchestrator.report.redacted_spec import redacted_spec
from orchestrator.report.report_file import incident_pages, write_report_at_end
from orchestrator.report.report_page import SECTIONS, ReportContent, report_page
from orchestrator.report.report_proof import ReportedProof
from orchestrator.run_facts.run_model import RunFacts
from orchestrator.run_facts.why.bottleneck import bottleneck
from orchestrator.run_facts.why.diagnosis import diagnose
from tests.unit.run_facts.made import event, facts, step

pytestmark = pytest.mark.unit
Recorded = Callable[..., RunLayout]
HOSTILE = "</script></style><script>alert(1)</script><img src=http://x.example/ onerror=alert(1)>"


def page_of(run: RunFacts, *pages: IncidentPage, spec: str | None = "name: made\n") -> str:
    return report_page(ReportContent(run, diagnose(run), ReportedProof(None, "not now"), spec, pages))


def hostile_events() -> list[Event]:
    """An event of every kind, in which every text is hostile."""
    return [
        event(kind, 10.0, **{field.name: HOSTILE for field in fields_of(kind) if field.annotation is str})
        for kind in EVENT_TYPES
    ]


def test_nothing_of_a_run_becomes_markup() -> None:
    run = facts([step(number) for number in range(1, 20)], hostile_events(), data={"directory": HOSTILE})
    run = replace(run, record=replace(run.record, reason=HOSTILE, name=HOSTILE, id=HOSTILE))
    found = bottleneck("x", 50.0, 100.0, HOSTILE, (HOSTILE,), (f"`{HOSTILE}`",))
    diagnosis = replace(diagnose(run), found=(found,), not_judged=(HOSTILE,))
    pages = [IncidentPage(HOSTILE, HOSTILE, HOSTILE)]
    page = report_page(ReportContent(run, diagnosis, ReportedProof(None, HOSTILE), HOSTILE, pages, 3))
    assert "<img" not in page
    assert page.count("<script>") == 1, "the page's own"
    assert page.count("</style>") == 1
    assert page.count("alert(1)") > 8, "it is shown as text"


def test_the_page_asks_for_nothing_from_anywhere() -> None:
    page = page_of(facts([step(1), step(2)]))
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", page)
    assert "@import" not in page
    assert "url(" not in page
    assert "default-src &#x27;none&#x27;" in page


def test_every_section_is_there_even_if_there_is_nothing_to_say() -> None:
    for run in (facts([]), facts([step(1)], ended_s=None), facts([step(number) for number in range(1, 50)])):
        page = page_of(run, spec=None)
        assert re.findall(r'<section id="(\w+)"', page) == list(SECTIONS)
        assert page.count("<h1>") == 1


def test_a_report_of_a_very_long_run_is_small() -> None:
    reports = (step(number, loss=1.0 + (number * 7919 % 1000) / 1e3) for number in range(1, 2000))
    more = [event(TrainingPlanned, number / 50) for number in range(3000)]
    more += [event(RecoveryStarted, number / 50, incident=number, cause="x" * 1000) for number in range(3000)]
    more += [event(CheckpointSaved, number / 50, step=number) for number in range(3000)]
    run = facts(reports, more)
    pages = [IncidentPage("x", "x", "y" * 16_384)] * 30
    assert len(page_of(run, *pages, spec="z" * 100_000)) < 2_000_000


def test_secrets_do_not_get_into_it(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "name: a\ntrain: {tokens: 5000}\ntokenizer: {train: {vocab_size: 10}}\n"
        "resources: {env: {HF_TOKEN: hunter2, PLAIN: hunter3}}\nhub_token: hunter4\n"
        "checkpoint: {storage: 's3://user:hunter5@bucket/x?sig=hunter6&part=1'}\n"
        "data: {sources: [{files: ['https://user:hunter7@host/a.txt']}]}\n"
    )
    shown = redacted_spec(spec)
    assert shown is not None
    assert "hunter" not in shown
    for kept in ("HF_TOKEN", "tokens: 5000", "vocab_size: 10", "bucket/x", "part=1", "@host/a.txt"):
        assert kept in shown
    spec.write_text("{")
    assert redacted_spec(spec) is None
    assert redacted_spec(tmp_path / "none") is None


def test_incident_pages_are_bounded(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    assert incident_pages(layout) == ([], 0)
    layout.incidents.mkdir()
    for number in range(1, 36):
        layout.incident(number).write_text(f"# Incident {number}: lost <b>\n" + "x" * (20_000 if number == 35 else 10))
    pages, left_out = incident_pages(layout)
    assert (len(pages), left_out, pages[0].title) == (30, 5, "Incident 6: lost <b>")
    assert len(pages[-1].text) < 17_000
    assert "the rest is in" in pages[-1].text


def test_the_command_writes_it(recorded: Recorded, tmp_path: Path) -> None:
    layout, target = recorded(fails_at=8), tmp_path / "out.html"
    (layout.incidents).mkdir()
    layout.incident(1).write_text("# Incident 1: worker 1 lost after step 7\n")
    layout.spec.write_text("name: tiny\n")
    arguments = ["report", "last", "--home", str(layout.root.parent)]
    done = CliRunner().invoke(cli, [*arguments, "--html", str(target)])
    assert done.exit_code == 0, done.output
    page = target.read_text()
    for expected in ("ValueError: boom", "worker 1 lost after step 7", "name: tiny", layout.run_id, "goodput"):
        assert expected in page
    assert CliRunner().invoke(cli, arguments).exit_code == 0
    assert layout.report.is_file()
    failed = CliRunner().invoke(cli, [*arguments, "--html", str(tmp_path / "no" / "x.html")])
    assert "cannot write" in str(failed.exception)


def test_at_the_end_of_a_run_nothing_can_fail(recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    layout = recorded()
    write_report_at_end(layout)
    assert layout.report.read_text().startswith("<!doctype html>")
    layout.report.unlink()
    layout.report.mkdir()
    write_report_at_end(layout)
    assert capsys.readouterr().err.count("was not written") == 1
    write_report_at_end(RunLayout(layout.root / "none"))
