"""Tokens per second of `convoy run` against a bare script under `torch.distributed.run`.

Both train the same model on the same tokens with the same DeepSpeed config, two workers on this machine.
"""

import json
import statistics
import sys
from pathlib import Path

import numpy as np

from orchestrator.data.samples.dataset import TokenDataset
from orchestrator.spec.loading.load import load_job
from orchestrator.train.engine.deepspeed_config import EngineShape, deepspeed_config
from tests.bench.jobs import GLOBAL_BATCH, MODEL, SEQUENCE_LENGTH, VOCAB_SIZE, WORKERS, write_job
from tests.bench.measure import CONVOY, Row, alternate, environment, median_ratio, run

STEPS = 30
WARM_UP_STEPS = 6
ROUNDS = 3
BAR = 0.97
DATA_WAIT_BAR = 0.01


def convoy_steps(job: Path, home: Path) -> list[dict]:
    """Run a job and return its step records."""
    before = set(home.glob("*/steps.jsonl"))
    run([CONVOY, "run", str(job), "--plain"], environment({"CONVOY_HOME": str(home)}))
    (steps,) = set(home.glob("*/steps.jsonl")) - before
    return [json.loads(line) for line in steps.read_text().splitlines()]


def peer_tokens(home: Path, scratch: Path, samples: int = (STEPS + 1) * GLOBAL_BATCH) -> Path:
    """The tokens Convoy prepared, in its order, as one array for the peers."""
    (manifest,) = home.glob("cache/data/*/manifest.json")
    dataset = TokenDataset.open(manifest.parent)
    path = scratch / "tokens.npy"
    np.save(path, dataset.train(0, samples).tokens.astype(np.int64))
    return path


def peer_model() -> str:
    return json.dumps({**MODEL, "vocab_size": VOCAB_SIZE, "n_positions": SEQUENCE_LENGTH})


def peer_config(job: Path, workers: int = WORKERS) -> str:
    """The DeepSpeed config Convoy itself uses for this job."""
    shape = EngineShape(world_size=workers, micro_batch=GLOBAL_BATCH // workers, accumulation=1, device="cpu")
    config = deepspeed_config(load_job(job).spec, shape)
    config["gradient_clipping"] = 1.0
    config["optimizer"]["params"]["lr"] = 1e-3  # Convoy sets the rate of every step itself
    return json.dumps(config)


def bare_command(job: Path, tokens: Path) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORKERS}"]
    script = Path(__file__).with_name("peers") / "bare_deepspeed.py"
    options = ["--tokens", str(tokens), "--model", peer_model(), "--config", peer_config(job), "--steps", str(STEPS)]
    return [*launcher, str(script), *options]


def measure(scratch: Path) -> list[Row]:
    rows = []
    home = scratch / "home"
    for stage in (1, 2, 3):
        job = write_job(scratch, STEPS, stage)
        waits: list[float] = []
        convoy_steps(job, home)
        bare = bare_command(job, peer_tokens(home, scratch))
        run(bare)

        def ours(job: Path = job, waits: list[float] = waits) -> float:
            steps = convoy_steps(job, home)[WARM_UP_STEPS:]
            waits += [rank["phases"]["data_wait_s"] / s["step_time_s"] for s in steps for rank in s["ranks"]]
            return GLOBAL_BATCH * SEQUENCE_LENGTH / statistics.median(s["step_time_s"] for s in steps)

        def peer(bare: list[str] = bare) -> float:
            times = run(bare).last_json()["step_times_s"][WARM_UP_STEPS:]
            return GLOBAL_BATCH * SEQUENCE_LENGTH / statistics.median(times)

        convoy, theirs = alternate(ROUNDS, ours, peer)
        ratio = median_ratio(convoy, theirs)
        figures = [f"{statistics.median(values):.0f} tokens/s" for values in (convoy, theirs)]
        rows.append(Row(f"training, ZeRO-{stage}, {WORKERS} workers", *figures, ratio, f">= {BAR}", ratio >= BAR))
        wait = statistics.median(waits)
        rows.append(
            Row(
                f"data wait, ZeRO-{stage}",
                f"{wait:.2%} of a step",
                "",
                None,
                f"< {DATA_WAIT_BAR:.0%}",
                wait < DATA_WAIT_BAR,
                f"99th percentile {np.quantile(waits, 0.99):.2%}",
            )
        )
    return rows
