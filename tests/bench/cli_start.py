"""How long `convoy --help` and `convoy validate` take: under half a second."""

import statistics
from pathlib import Path

from tests.bench.measure import CONVOY, Row, run

BAR_S = 0.5


def measure(scratch: Path) -> list[Row]:
    rows = []
    job = Path(__file__).resolve().parents[2] / "jobs" / "quickstart.yaml"
    for name, command in {
        "convoy --help": [CONVOY, "--help"],
        "convoy validate": [CONVOY, "validate", str(job)],
    }.items():
        run(command)
        seconds = statistics.median(run(command).seconds for _ in range(9))
        rows.append(Row(name, f"{seconds:.2f} s", "", None, f"< {BAR_S} s", seconds < BAR_S))
    return rows
