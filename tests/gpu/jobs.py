"""The jobs that the checks run: their specs, data and plans, at the size of a GPU or of a rehearsal on CPUs."""

import json
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.data.executor import LocalExecutor
from orchestrator.data.prepare import prepare
from orchestrator.domain.session import TrainPlan
from orchestrator.planner.batch_shape import shape_batch
from orchestrator.spec.job import JobSpec

SMALL: dict[str, Any] = {"n_layer": 4, "n_embd": 256, "n_head": 4}
TINY: dict[str, Any] = {"n_layer": 2, "n_embd": 48, "n_head": 2}
M355: dict[str, Any] = {"n_layer": 24, "n_embd": 1024, "n_head": 16}
B1: dict[str, Any] = {"n_layer": 24, "n_embd": 1792, "n_head": 14}
"""About one billion parameters."""


@dataclass(frozen=True)
class Jobs:
    """Makes jobs for a device."""

    directory: Path
    """For data and runs."""
    gpu: bool

    @property
    def model(self) -> dict[str, Any]:
        """Of the checks that are about correctness."""
        return SMALL if self.gpu else TINY

    def spec(
        self,
        stage: int,
        precision: str,
        steps: int,
        batch: int = 12,
        sequence_length: int = 64,
        vocabulary: int = 512,
        **changes: Any,
    ) -> JobSpec:
        """A spec; `changes` replace whole sections, or add to `train`, `zero` and `checkpoint`; `config` is the
        model's. A large vocabulary is trained on all of the standard library."""
        value: dict[str, Any] = {
            "name": "gpu",
            "model": {"architecture": "gpt2", "config": changes.pop("config", self.model)},
            "tokenizer": {"train": {"vocab_size": vocabulary}},
            "data": {
                "sources": [{"files": ["json/*.py", "email/*.py"] if vocabulary <= 1024 else ["**/*.py"]}],
                "sequence_length": sequence_length,
            },
            "train": {
                "steps": steps, "global_batch": batch, "micro_batch": changes.pop("micro_batch", batch), "lr": 1e-3,
                "warmup_steps": 2, "precision": precision, **changes.pop("train", {}),
            },
            "zero": {"stage": stage, **changes.pop("zero", {})},
            "resources": {"gpus_per_worker": int(self.gpu)},
            "checkpoint": {"at_end": False, "memory_interval_steps": 1, **changes.pop("checkpoint", {})},
            **changes,
        }  # fmt: skip
        return JobSpec.model_validate_json(json.dumps(value))

    def data(self, spec: JobSpec) -> Path:
        """Directory of the prepared data of a spec; the standard library is the text."""
        text = Path(sysconfig.get_paths()["stdlib"])
        cache = self.directory / "cache"
        return prepare(spec, text, cache, LocalExecutor(workers=0), lambda *_: None).directory

    def plan(self, name: str, spec: JobSpec, world_size: int, **changes: Any) -> TrainPlan:
        """What the driver would have a gang of that size do; its results go to a directory of that name."""
        train = spec.train
        assert train.steps is not None
        micro = train.micro_batch if isinstance(train.micro_batch, int) else None
        shape = shape_batch(train.global_batch, world_size, micro)
        run_dir = self.directory / "runs" / name
        run_dir.mkdir(parents=True, exist_ok=True)
        return TrainPlan(
            spec=spec.model_dump(mode="json"),
            run_dir=str(run_dir),
            data_dir=str(self.data(spec)),
            total_steps=train.steps,
            shares=shape.shares,
            micro_batch=shape.micro_batch,
            accumulation=shape.accumulation,
            export=False,
            **changes,
        )
