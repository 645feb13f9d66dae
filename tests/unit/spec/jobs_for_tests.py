"""One valid job as text, and ways to break it."""

from collections.abc import Mapping

from orchestrator.spec.job import JobSpec
from orchestrator.spec.loading.load import load_text
from orchestrator.spec.spec_errors import Problem, SpecError

BASE = """\
name: tiny
model:
  architecture: gpt2
  config:
    n_layer: 2
    n_embd: 64
    n_head: 2
tokenizer:
  train:
    vocab_size: 300
data:
  sources:
    - files: ["a.txt"]
  sequence_length: 16
  validation:
    fraction: 0.1
train:
  steps: 100
  global_batch: 8
  lr: 1e-3
  warmup_steps: 10
zero:
  stage: 1
resources:
  workers: 2
"""


def edited(*changes: tuple[str, str]) -> str:
    """BASE with each (old, new) applied; the old text must be there, once."""
    text = BASE
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def load(*changes: tuple[str, str], sets: tuple[str, ...] = (), env: Mapping[str, str] | None = None) -> JobSpec:
    return load_text(edited(*changes), "job.yaml", sets, env or {})


def problems_of(text: str, *sets: str, env: Mapping[str, str] | None = None) -> list[Problem]:
    """The problems of a job; empty for a valid one."""
    try:
        load_text(text, "job.yaml", sets, env or {})
    except SpecError as error:
        return list(error.problems)
    return []


def shown(*changes: tuple[str, str], sets: tuple[str, ...] = (), env: Mapping[str, str] | None = None) -> list[str]:
    """The problems of an edited BASE, as they are printed."""
    return [str(problem) for problem in problems_of(edited(*changes), *sets, env=env)]
