"""Cold start: from the command to the end of the first optimizer step, against a minimal stock Ray Train script.

Both start their own Ray, on tokens that are ready, and train the same model with DeepSpeed ZeRO-2. With more workers
than cores the fork server matters most: each worker of the peer imports everything itself.
"""

import json
import statistics
import sys
import time
from pathlib import Path

from tests.bench.jobs import write_job
from tests.bench.measure import Row, alternate, environment, median_ratio, run
from tests.bench.throughput import convoy_steps, peer_config, peer_model, peer_tokens

ROUNDS = 3
BARS = {2: 0.8, 4: 0.25}
"""By the number of workers."""
STAGE = 2


def measure(scratch: Path) -> list[Row]:
    return [row(scratch / str(workers), workers, bar) for workers, bar in BARS.items()]


def row(scratch: Path, workers: int, bar: float) -> Row:
    """One line of the table."""
    home = scratch / "home"
    job = write_job(scratch, 2, STAGE, workers)
    convoy_steps(job, home)
    tokens = peer_tokens(home, scratch)
    script = Path(__file__).with_name("peers") / "ray_train.py"
    options = ["--tokens", str(tokens), "--model", peer_model(), "--config", peer_config(job, workers)]
    command = [sys.executable, str(script), *options, "--workers", str(workers), "--storage"]
    env = environment({"RAY_USAGE_STATS_ENABLED": "0"})

    def ours() -> float:
        start = time.time()
        return convoy_steps(job, home)[0]["time_s"] - start

    def peer() -> float:
        storage = scratch / f"peer-{time.monotonic_ns()}"
        storage.mkdir()
        start = time.time()
        run([*command, str(storage)], env)
        return json.loads((storage / "first-step.json").read_text())["first_step_time_s"] - start

    peer()
    convoy, theirs = alternate(ROUNDS, ours, peer)
    ratio = median_ratio(convoy, theirs)
    figures = [f"{statistics.median(values):.1f} s" for values in (convoy, theirs)]
    return Row(f"command to first step, ZeRO-{STAGE}, {workers} workers", *figures, ratio, f"<= {bar}", ratio <= bar)
