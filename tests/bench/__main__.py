"""`python -m tests.bench [NAME ...] [--peers] [--write]`: run benchmarks, print a table, maybe put it into the docs."""

import argparse
import importlib
import platform
import shlex
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import psutil

from tests.bench.measure import Row, exit_on_sigterm
from tests.bench.peer_figures import Peers

AGAINST_KEPT = ("recovery", "recovery_zero3", "whole_gang", "checkpoint_stall", "elastic_restore")
"""Their peers take many minutes: what was measured on this machine before is taken, unless --peers is given."""
BENCHMARKS = (
    "cli_start", "tokenizing", "throughput", "cold_start", "gpu", *AGAINST_KEPT, "join", "replacement", "snapshot_cost",
    "scrape_cost", "scale", "fifty_recoveries", "queue_decide", "queue_week", "queue_store",
    "api_submissions", "submitted",
)  # fmt: skip
PEERS_ALONE = ("recovery_peers", "checkpoint_peers", "restore_peers")
"""Run only where named: other benchmarks measure these beside ours."""

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
PICTURES = DOCUMENT.parent / "pictures"
BEGIN, END = "<!-- {} begin -->", "<!-- {} end -->"


def table(rows: list[Row]) -> str:
    """A Markdown table."""
    lines = ["| what | Convoy | peer | ratio | bar | |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        digits = 3 if row.ratio is not None and row.ratio < 0.1 else 2
        ratio = "" if row.ratio is None else f"{row.ratio:.{digits}f}"
        met = {True: "met", False: "**not met**", None: "not measured" if row.bar else ""}[row.met]
        lines.append(f"| {row.name} | {row.ours} | {row.peer} | {ratio} | {row.bar} | {met} |")
    notes = [f"- {row.name}: {row.note}" for row in rows if row.note]
    return "\n".join([*lines, "", *notes] if notes else lines)


def write(name: str, text: str) -> None:
    """Replace the section of one benchmark in docs/benchmarks.md."""
    begin, end = BEGIN.format(name), END.format(name)
    document = DOCUMENT.read_text()
    if begin not in document:
        document += f"\n{begin}\n{end}\n"
    head, rest = document.split(begin, 1)
    tail = rest.split(end, 1)[1]
    command = shlex.join(["make", "bench", f"BENCH={name}"])
    memory = psutil.virtual_memory().total / 2**30
    where = f"{psutil.cpu_count()} cores, {memory:.0f} GiB, Python {platform.python_version()}"
    stamp = f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, {where}"
    DOCUMENT.write_text(f"{head}{begin}\n{stamp}\n\n{text}\n{end}{tail}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    known = (*BENCHMARKS, *PEERS_ALONE)
    alone = f"the peers alone: {', '.join(PEERS_ALONE)}"
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; default all of these; {alone}"
    )
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    parser.add_argument("--peers", action="store_true", help="measure the slow peers again, too")
    args = parser.parse_args()
    names = [name.replace("-", "_") for name in args.names]
    unknown = set(names) - set(known)
    if unknown:
        parser.error(f"no benchmark named {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    exit_on_sigterm()
    all_met = True
    for name in names or BENCHMARKS:
        print(f"## {name}", flush=True)
        with tempfile.TemporaryDirectory(prefix=f"convoy-bench-{name}-") as scratch:
            module = importlib.import_module(f"tests.bench.{name}")
            given = (Path(scratch), Peers(args.peers)) if name in AGAINST_KEPT else (Path(scratch),)
            rows = module.measure(*given)
            pictures = {each.name: each.read_text() for each in Path(scratch).glob("*.svg")}
        print(table(rows), flush=True)
        all_met = all_met and all(row.met is not False for row in rows)
        if args.write:
            write(name, table(rows))
            for file_name, picture in pictures.items():
                (PICTURES / file_name).write_text(picture)
    return 0 if all_met else 1


if __name__ == "__main__":
    sys.exit(main())
