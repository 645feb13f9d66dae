"""`recovery` with ZeRO-3: a run of its own, so that each stays short."""

from pathlib import Path

from tests.bench.measure import Row
from tests.bench.peer_figures import Peers
from tests.bench.recovery import rows, struck_run


def measure(scratch: Path, peers: Peers) -> list[Row]:
    return rows(3, struck_run(scratch, 3), peers)
