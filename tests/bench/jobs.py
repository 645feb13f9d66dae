"""The jobs the benchmarks run, written where they are needed. The text is Python's own standard library."""

from pathlib import Path

MODEL = {"n_layer": 4, "n_embd": 256, "n_head": 4}
VOCAB_SIZE = 4096
SEQUENCE_LENGTH = 128
GLOBAL_BATCH = 16
WORKERS = 2

JOB = """\
name: bench
model:
  architecture: gpt2
  config: {{n_layer: 4, n_embd: 256, n_head: 4}}
tokenizer:
  train: {{vocab_size: {vocab_size}}}
data:
  sources:
    - files: ["${{PYTHON_STDLIB}}/*.py"]
  sequence_length: {sequence_length}
train:
  steps: {steps}
  global_batch: {global_batch}
  micro_batch: {micro_batch}
  lr: 1e-3
  schedule: constant
zero: {{stage: {stage}}}
resources: {{workers: {workers}, placement: pack}}
checkpoint: {{at_end: false}}
cluster: {{nodes: 1}}
"""


def write_job(directory: Path, steps: int, stage: int, workers: int = WORKERS) -> Path:
    """Write a job into `directory` and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"job-zero{stage}-{steps}-{workers}.yaml"
    path.write_text(
        JOB.format(
            vocab_size=VOCAB_SIZE,
            sequence_length=SEQUENCE_LENGTH,
            steps=steps,
            global_batch=GLOBAL_BATCH,
            micro_batch=GLOBAL_BATCH // workers,
            stage=stage,
            workers=workers,
        )
    )
    return path
