"""`python -m tests.gpu [CHECK ...]`: what one GPU can prove, in eight minutes, without Ray and without a network.

On a machine without a GPU the same checks run on CPUs with tiny models, as a rehearsal of the script. `--write` puts
the table into docs/gpu.md; only a run on a GPU may do that.
"""

import argparse
import datetime
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.gpu import checks, measures
from tests.gpu.lab import Lab, has_gpu
from tests.gpu.table import Result, as_json, as_markdown

Check = Callable[[Lab, Result], None]
ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "gpu.md"
BEGIN, END = "<!-- measured begin -->\n", "<!-- measured end -->\n"
CHECKS: dict[str, tuple[Check, float]] = {
    "facts": (checks.check_facts, 60.0),
    "stages": (checks.check_stages, 90.0),
    "ranks": (checks.check_ranks, 90.0),
    "recovery": (checks.check_recovery, 200.0),
    "assertion": (checks.check_assertion, 60.0),
    "out-of-memory": (checks.check_out_of_memory, 60.0),
    "saved-state": (measures.check_saved_state, 90.0),
    "copies": (measures.check_copies, 45.0),
    "memory": (measures.check_memory, 90.0),
    "speed": (measures.check_speed, 150.0),
}
"""In order, with the seconds that each may take."""


class CheckTimeout(Exception):
    """A check took too long."""


def run_checks(lab: Lab, names: Sequence[str], tell: Callable[[str], None]) -> list[Result]:
    """Run checks one after another. One that fails, or takes too long, does not keep the others from running."""
    results = []
    for name in names:
        check, limit_s = CHECKS[name]
        result, started_s = Result(name), time.monotonic()
        tell(f"{name} ...")
        try:
            with limited(limit_s):
                check(lab, result)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is what the check found
            result.failed = f"{traceback.format_exc()}\n{type(error).__name__}: {error}"
            tell(result.failed)
        result.seconds = time.monotonic() - started_s
        for row in result.rows:
            verdict = "" if row.met is None else "  met" if row.met else "  NOT MET"
            tell(f"  {row.what}: {row.value}  {row.bar}{verdict}")
        if result.skipped:
            tell(f"  not run: {result.skipped}")
        tell(f"  {result.seconds:.1f} s")
        results.append(result)
    return results


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Context that raises CheckTimeout in the main thread after so long."""

    def late(*_: object) -> None:
        raise CheckTimeout(f"it takes longer than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def machine() -> list[tuple[str, str]]:
    """What the table says of the machine beside what the checks find."""
    facts = [("date", datetime.date.today().isoformat()), ("Python", sys.version.split()[0])]
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
        facts.append(("nvidia-smi", done.stdout.strip().replace("\n", "; ")))
    return facts


def write(document: Path, text: str) -> None:
    """Put a table between the marks of the document."""
    before, _, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    document.write_text(f"{before}{BEGIN}{text}{END}{rest.partition(END)[2]}", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run checks and print their table; 1 if one failed or missed its bar."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("check", nargs="*", help=f"of {', '.join(CHECKS)}; default: all")
    parser.add_argument("--write", action="store_true", help="put the table into docs/gpu.md")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--rehearse", action="store_true", help="on CPUs, also where there is a GPU")
    options = parser.parse_args(arguments)
    if unknown := set(options.check) - CHECKS.keys():
        parser.error(f"no such check: {', '.join(sorted(unknown))}")
    gpu = not options.rehearse and has_gpu()
    if options.write and not gpu:
        parser.error("--write needs a GPU: a rehearsal on CPUs proves nothing about one")
    print(f"{'on a GPU' if gpu else 'rehearsal on CPUs: there is no GPU'}", flush=True)
    with tempfile.TemporaryDirectory(prefix="convoy-gpu-") as directory:
        lab = Lab(Path(directory), gpu)
        results = run_checks(lab, options.check or list(CHECKS), lambda line: print(line, flush=True))
    table = as_markdown(machine(), results)
    print(f"\n{table}")
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(results), indent=1))
    if options.write:
        write(DOCUMENT, table)
    return 0 if all(result.ok for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
