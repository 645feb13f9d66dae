"""One GPU: a GPT-2 of 355 M parameters in bf16, Convoy against a plain PyTorch loop with the same model and tokens."""

import json
import statistics
import sys
from pathlib import Path

from tests.bench.measure import Row, median_ratio, run
from tests.bench.throughput import convoy_steps, peer_tokens

MODEL = {"n_layer": 24, "n_embd": 1024, "n_head": 16}
VOCAB_SIZE = 8192
SEQUENCE_LENGTH = 1024
BATCH = 8
STEPS = 40
WARM_UP_STEPS = 10
ROUNDS = 3
BAR = 0.97

JOB = """\
name: bench-gpu
model: {{architecture: gpt2, config: {model}}}
tokenizer: {{train: {{vocab_size: {vocab_size}}}}}
data: {{sources: [{{files: ["${{PYTHON_STDLIB}}/*.py"]}}], sequence_length: {sequence_length}}}
train: {{steps: {steps}, global_batch: {batch}, micro_batch: {batch}, lr: 1e-4, schedule: constant, precision: bf16}}
zero: {{stage: 1}}
resources: {{workers: 1, gpus_per_worker: 1}}
checkpoint: {{at_end: false}}
"""


def has_gpu() -> bool:
    done = run([sys.executable, "-c", "import torch, json; print(json.dumps({'gpu': torch.cuda.is_available()}))"])
    return bool(done.last_json()["gpu"])


def measure(scratch: Path) -> list[Row]:
    if not has_gpu():
        return [Row("one GPU, 355 M parameters, bf16", "no GPU here", "", None, f">= {BAR}", None)]
    home, job = scratch / "home", scratch / "job.yaml"
    job.write_text(
        JOB.format(
            model=json.dumps(MODEL), vocab_size=VOCAB_SIZE, sequence_length=SEQUENCE_LENGTH, steps=STEPS, batch=BATCH
        )
    )
    convoy_steps(job, home)
    tokens = peer_tokens(home, scratch, (STEPS + 1) * BATCH)
    model = json.dumps({**MODEL, "vocab_size": VOCAB_SIZE, "n_positions": SEQUENCE_LENGTH})
    options = ["--tokens", str(tokens), "--model", model, "--batch", str(BATCH), "--steps", str(STEPS)]
    command = [sys.executable, str(Path(__file__).with_name("peers") / "plain_pytorch.py"), *options]
    ours, theirs, mfu, memory = [], [], [], []
    for _ in range(ROUNDS):
        steps = convoy_steps(job, home)[WARM_UP_STEPS:]
        ours.append(BATCH * SEQUENCE_LENGTH / statistics.median(s["step_time_s"] for s in steps))
        mfu += [s["mfu"] for s in steps if s["mfu"] is not None]
        memory.append(max(s["ranks"][0]["memory"]["peak_allocated_bytes"] for s in steps))
        peer = run(command).last_json()
        theirs.append(BATCH * SEQUENCE_LENGTH / statistics.median(peer["step_times_s"][WARM_UP_STEPS:]))
    ratio = median_ratio(ours, theirs)
    peaks = f"peak {max(memory) / 2**30:.1f} GiB, the peer's {peer['peak_allocated_bytes'] / 2**30:.1f} GiB"
    share = f", MFU {statistics.median(mfu):.1%}" if mfu else ""
    figures = [f"{statistics.median(values):.0f} tokens/s" for values in (ours, theirs)]
    return [Row("one GPU, 355 M parameters, bf16", *figures, ratio, f">= {BAR}", ratio >= BAR, peaks + share)]
