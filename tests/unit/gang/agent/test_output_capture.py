"""Output of a process, C libraries included, as lines."""

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.gang.agent.output_capture import MAX_LINE_BYTES, LineSplitter, last_lines

pytestmark = pytest.mark.unit


def test_lines_are_cut_at_newlines_and_carriage_returns() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"a\nb") == ["a"]
    assert splitter.feed(b"c\r10%\r20%\n\n") == ["bc", "10%", "20%"]
    assert splitter.feed(b"\xff\xfe end") == []
    assert splitter.flush() == ["�� end"]
    assert splitter.flush() == []


def test_a_line_without_end_is_bounded() -> None:
    splitter = LineSplitter()
    lines = splitter.feed(b"x" * (MAX_LINE_BYTES + 1))
    assert [len(line) for line in lines] == [MAX_LINE_BYTES]
    assert splitter.feed(b"y\n") == ["y"]


PROGRAM = """
import ctypes, os, sys
from pathlib import Path
from orchestrator.gang.agent.output_capture import OutputCapture
seen = []
capture = OutputCapture(Path(sys.argv[1]), seen.extend)
print("from python")
print("to stderr", file=sys.stderr)
libc = ctypes.PyDLL(None)
libc.puts(b"from C")
libc.fflush(None)
for _ in range(3000):
    libc.puts(b"z" * 60)
libc.fflush(None)
os.system("echo from a child")
sys.stdout.write("no newline")
capture.drain()
Path(sys.argv[2]).write_text("\\n".join(seen))
"""


def test_everything_a_process_writes_is_caught(tmp_path: Path) -> None:
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "log"), str(tmp_path / "seen")],
        capture_output=True,
        timeout=30,
        check=True,
    )
    assert (out.stdout, out.stderr) == (b"", b"")
    seen = (tmp_path / "seen").read_text().splitlines()
    assert seen[:3] == ["from python", "to stderr", "from C"]
    assert seen.count("z" * 60) == 3000
    assert seen[-2:] == ["from a child", "no newline"]
    assert last_lines(tmp_path / "log", 2) == ["from a child", "no newline"]
    assert last_lines(tmp_path / "nothing", 2) == []
