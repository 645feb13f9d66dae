"""The README's animation: a terminal's output becomes rows, rows become frames, frames become an SVG."""

import io
import re
import xml.etree.ElementTree as ElementTree

import pytest
from rich.console import Console
from rich.live import Live

from tests.recording.__main__ import PICTURE, RUN, SHELL, without_summary
from tests.recording.outputs import DOCUMENT, commands, excerpt, refresh
from tests.recording.svg import render
from tests.recording.terminal import PALETTE, Run, Screen, Style
from tests.recording.timeline import Frame, Output, Pane, Segment, frames, segments

pytestmark = pytest.mark.unit

SVG = "{http://www.w3.org/2000/svg}"
PANE = Pane("convoy", 20, 3)
MOST_BYTES = 300 * 1024


def shown(screen: Screen) -> list[str]:
    """Rows as plain text."""
    lines = []
    for row in screen.rows():
        line = ""
        for run in row:
            line = line.ljust(run.column) + run.text
        lines.append(line)
    return lines


def screen_after(*texts: str, columns: int = 10, rows: int = 3) -> Screen:
    screen = Screen(columns, rows)
    for text in texts:
        screen.feed(text)
    return screen


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("one\r\ntwo", ["one", "two", ""]),
        ("loading\rdone", ["doneing", "", ""]),
        ("a\r\nb\r\nc\r\nd", ["b", "c", "d"]),
        ("0123456789ab", ["0123456789", "ab", ""]),
        ("one\r\ntwo\x1b[1A\r\x1b[2KONE", ["ONE", "two", ""]),
        ("abcdef\x1b[3D\x1b[K", ["abc", "", ""]),
        ("\x1b[?25l\x1b]0;title\x07text\x1b[?25h", ["text", "", ""]),
    ],
)
def test_the_terminal_understands_what_programs_write(text: str, rows: list[str]) -> None:
    assert shown(screen_after(text)) == rows
    assert shown(screen_after(*text)) == rows, "sequences may be cut between two reads"


@pytest.mark.parametrize(
    ("sgr", "style"),
    [
        ("31", Style(PALETTE[1])),
        ("1;96", Style(PALETTE[14], bold=True)),
        ("2", Style(dim=True)),
        ("38;5;197", Style("#ff005f")),
        ("38;5;237", Style("#3a3a3a")),
        ("38;2;1;2;255", Style("#0102ff")),
        ("48;5;31", Style()),
        ("31;0", Style()),
    ],
)
def test_the_terminal_keeps_colours(sgr: str, style: Style) -> None:
    assert screen_after(f"a \x1b[{sgr}mb").rows()[0][-1].style == style


def test_the_terminal_shows_what_a_live_display_draws() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=30, height=10, color_system="standard")
    with Live("first", console=console, auto_refresh=False) as live:
        live.update("[red]two[/]\nlines", refresh=True)
        console.print("above")
        live.update("three", refresh=True)
    screen = screen_after(file.getvalue().replace("\n", "\r\n"), columns=30, rows=10)
    assert [line for line in shown(screen) if line] == ["above", "three"]


def test_the_time_around_the_kill_plays_as_it_was() -> None:
    calm, real, rest, proof = segments(killed_s=40.0, recovered_s=42.0, trained_s=100.0, ended_s=103.0)
    assert real.plays_s == pytest.approx(real.until_s - calm.until_s)
    assert calm.until_s < 40.0 < 42.0 < real.until_s
    assert calm.plays_s + rest.plays_s + proof.plays_s <= 12.0
    assert proof.until_s == 103.0


def test_frames_follow_the_playback() -> None:
    outputs = [Output(1.0, 0, "a"), Output(9.0, 0, "b"), Output(10.5, 0, "c")]
    made = frames(outputs, [PANE], [Segment(10.0, 1.0), Segment(11.0, 1.0)], interval_s=0.5)
    assert [frame.at_s for frame in made] == [0.0, 0.5, 1.0, 1.5]
    assert [frame.clock_s for frame in made] == [5.0, 10.0, 10.5, 11.0]
    assert [frame.speed for frame in made] == [10.0, 10.0, 1.0, 1.0]
    assert [frame.panes[0][0][0].text for frame in made] == ["a", "ab", "abc", "abc"]


def frame(at_s: float, *texts: str) -> Frame:
    rows = tuple((Run(0, text, Style("#ff0000", bold=True)),) if text else () for text in texts)
    return Frame(at_s, at_s, 1.0, ((*rows, *((),) * (PANE.rows - len(rows))),))


def assert_stands_alone(svg: str) -> ElementTree.Element:
    """It is XML, runs no script and loads nothing: GitHub shows no other."""
    root = ElementTree.fromstring(svg)
    assert {element.tag for element in root.iter()} <= {
        f"{SVG}{tag}" for tag in ("svg", "title", "style", "rect", "g", "text")
    }
    assert svg.count("http") == 1, "the namespace alone"
    assert not re.search(r"url\(|@import|@font-face|href|<script|on\w+=", svg)
    return root


def test_the_picture_is_xml_whatever_was_printed() -> None:
    svg = render([frame(0, "<b> & \x07\ud800"), frame(1, "]]> '\"")], [PANE], hold_s=2, title="a < b & c")
    root = assert_stands_alone(svg)
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert "<b>\u00a0&\u00a0" in texts
    assert "]]>\u00a0'\"" in texts


def test_each_text_is_visible_for_its_time() -> None:
    svg = render([frame(0, "all", "first"), frame(1, "all", "later"), frame(3, "all", "later")], [PANE], 1, "t")
    root = ElementTree.fromstring(svg)
    groups = {text.text: group.get("class") for group in root.iter(f"{SVG}g") for text in group.iter(f"{SVG}text")}
    assert "all" not in groups, "what does not change is not animated"
    style = root.find(f"{SVG}style")
    assert style is not None
    assert style.text is not None
    first, later = str(groups["first"]).split(), str(groups["later"]).split()
    assert f"@keyframes {first[1]}{{0%{{visibility:visible}}25%,to{{visibility:hidden}}}}" in style.text
    assert (
        f"@keyframes {later[1]}{{0%{{visibility:hidden}}25%{{visibility:visible}}to{{visibility:visible}}}}"
        in style.text
    )
    assert "z" in later, "the last frame stands without animation"
    assert "z" not in first
    assert "animation:4.00s step-end infinite" in style.text
    assert "prefers-reduced-motion" in style.text


def test_the_summary_is_left_out_of_the_run_alone() -> None:
    outputs = [
        Output(1, RUN, "step 60\r\n\r\nRun quick succeeded\r\n"),
        Output(2, RUN, "Next:"),
        Output(3, SHELL, "kept\r\nRun"),
    ]
    assert [output.text for output in without_summary(outputs)] == ["step 60\r\n", "kept\r\nRun"]


def test_the_picture_of_the_readme_stands_alone() -> None:
    svg = PICTURE.read_text(encoding="utf-8")
    root = assert_stands_alone(svg)
    text = "\n".join(element.text or "" for element in root.iter(f"{SVG}text")).replace("\u00a0", " ")
    assert len(svg.encode()) < MOST_BYTES
    assert "docs/pictures/node-killed.svg" in (PICTURE.parents[2] / "README.md").read_text(encoding="utf-8")
    assert "kill -9" in text
    assert "recovered in" in text
    assert "PROVED" in text


def test_most_steps_of_a_run_are_left_out() -> None:
    lines = ["[   0:01] starting", *(f"[   0:{n:02d}] step {n}/9 (1%)" for n in range(2, 8)), "[   0:08] step 8: saved"]
    lines += ["[   0:09] step 9/9 (100%)", "Run ended"]
    assert excerpt(lines) == [*lines[:3], "...", *lines[7:]]


def test_of_a_drill_the_fault_and_the_score_are_kept() -> None:
    before = ["[   0:01] running", "[   0:02] step 1/9 (1%)", "[   0:03] step 2/9 (2%)"]
    fault = ["[   0:04] worker 2 failed: gone", "[   0:05] recovering", "[   0:06] recovered in 1.4 s"]
    score = ["fault          step", "kill-node      20", "", "SURVIVED"]
    shown = excerpt([*before, *fault, "[   0:07] step 3/9 (3%)", "", *score])
    assert shown == ["...", before[-1], *fault, "...", *score]


def test_the_output_of_each_command_in_a_marked_block_is_replaced() -> None:
    document = (
        "text\n<!-- a begin -->\n```console\n$ one\nold\n$ two \\\n    --more\nold\n```\n<!-- a end -->\n"
        "```console\n$ three\nstays\n```\n"
    )
    ran: list[str] = []

    def run(command: str) -> str:
        ran.append(command)
        return f"new {len(ran)}\n"

    refreshed = refresh(document, run)
    assert ran == ["one", "two      --more"]
    assert "$ one\nnew 1\n$ two \\\n    --more\nnew 2\n```\n<!-- a end -->" in refreshed
    assert "stays" in refreshed
    assert refresh(refreshed, lambda command: "new 1\n" if command == "one" else "new 2\n") == refreshed


def test_the_document_has_blocks_to_refresh() -> None:
    ran: list[str] = []
    refresh(DOCUMENT.read_text(encoding="utf-8"), lambda command: ran.append(command) or "")  # type: ignore[func-returns-value]
    assert [command.split()[:2] for command in ran] == [
        ["make", "quickstart"], ["convoy", "show"], ["convoy", "data"], ["convoy", "drill"],
    ]  # fmt: skip
    assert commands("$ a\nout\n$ b") == ["a", "b"]
