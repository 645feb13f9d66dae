"""Training processes and prepared text that the tests of the training engine share."""

import json
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.spec.job import JobSpec
from tests.cluster.train_processes import TrainProcesses
from tests.cluster.zero_gang import Gang

TINY_MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 2, "n_embd": 48, "n_head": 2},
    "gpt_neo": {"num_layers": 2, "hidden_size": 48, "num_heads": 2, "window_size": 8},
    "llama": {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "bert": {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2},
    "rwkv": {"hidden_size": 48, "num_hidden_layers": 2},
    "mamba": {"hidden_size": 48, "num_hidden_layers": 2, "state_size": 8},
}
for _name in ("mistral", "qwen2", "qwen3"):
    TINY_MODELS[_name] = TINY_MODELS["llama"] | {"head_dim": 12} if _name != "qwen2" else TINY_MODELS["llama"]


@pytest.fixture(scope="session")
def train_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainProcesses]:
    """Four worker processes, imported once."""
    processes = TrainProcesses(4, tmp_path_factory.mktemp("gangs"))
    yield processes
    processes.close()


@pytest.fixture(scope="module")
def gang(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gang]:
    """Two processes that form groups. A module that needs more has a fixture of its own."""
    processes = Gang(2, tmp_path_factory.mktemp("groups"))
    yield processes
    processes.close()


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., JobSpec]:
    """A spec that trains a tiny model on lines of Python, one line a sample, so that batches hold padding."""

    def make(
        architecture: str = "gpt2",
        steps: int = 10,
        global_batch: int = 12,
        micro_batch: int | str = 3,
        stage: int = 0,
        **train: Any,
    ) -> JobSpec:
        zero = train.pop("zero", {})
        checkpoint = train.pop("checkpoint", {"at_end": False})
        model = {"architecture": architecture, "config": TINY_MODELS[architecture] | train.pop("config", {})}
        source = {"files": ["json/*.py", "email/*.py"], "format": "lines"}
        spec = {
            "name": "test",
            "model": model,
            "tokenizer": {"train": {"vocab_size": 384}},
            "data": {
                "sources": [source],
                "sequence_length": 32,
                "packing": False,
                "validation": {"fraction": 0.02, "max_samples": 50},
            },
            "train": {
                "steps": steps,
                "global_batch": global_batch,
                "micro_batch": micro_batch,
                "lr": 2e-3,
                "warmup_steps": 2,
                **train,
            },
            "zero": {"stage": stage, **zero},
            "checkpoint": checkpoint,
        }
        return JobSpec.model_validate_json(json.dumps(spec))

    return make


@pytest.fixture(scope="session")
def prepared_lines(tmp_path_factory: pytest.TempPathFactory, make_spec: Callable[..., JobSpec]) -> Path:
    """Directory of the data of `make_spec`; a BERT spec's, whose tokenizer has a mask token, serves every model."""
    from orchestrator.data.executor import LocalExecutor
    from orchestrator.data.prepare import prepare

    stdlib = Path(sysconfig.get_paths()["stdlib"])
    cache = tmp_path_factory.mktemp("cache")
    return prepare(make_spec("bert"), stdlib, cache, LocalExecutor(workers=0), lambda *_: None).directory
