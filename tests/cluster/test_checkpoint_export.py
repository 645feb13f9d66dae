"""What training saved is what the export holds: the trained engine and the exported model compute the same."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoint.storage.retention import Rule
from orchestrator.spec.job import JobSpec
from tests.cluster.zero_gang import Gang, LocalSession
from tests.unit.train.exportable import job, prepared_data

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def gang(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gang]:
    gang = Gang(3, tmp_path_factory.mktemp("groups"))
    yield gang
    gang.close()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_data(tmp_path_factory.mktemp("data"))


def train_and_export(spec: JobSpec, data_dir: str, run_dir: str, freeze: str) -> dict[str, Any]:
    """Train three steps, save, export on rank 0, and compare the logits of engine and export."""
    import torch
    import torch.distributed as dist
    from transformers import AutoModelForCausalLM

    from orchestrator.data.data_manifest import DataManifest
    from orchestrator.train.convert.export import export_model
    from orchestrator.train.engine.deepspeed_config import EngineShape
    from orchestrator.train.engine.engine import build_engine, destroy_engine
    from orchestrator.train.models.architectures import build_model
    from orchestrator.train.snapshot.checkpointing import SaveProgress, save_checkpoint

    model: Any = build_model(spec, DataManifest.read(Path(data_dir)))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (freeze and name.endswith(freeze)))
    engine = build_engine(spec, model, EngineShape(dist.get_world_size(), 2, 1, "cpu"))
    draws = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(3):
        ids = torch.randint(0, 250, (2, 16), generator=draws)
        loss = engine(input_ids=ids, labels=ids).loss
        engine.backward(loss)
        engine.step()
    engine.eval()
    ids = torch.arange(32).reshape(2, 16)
    with torch.no_grad():
        trained = engine(input_ids=ids).logits.float()
    path = save_checkpoint(engine, LocalSession(), run_dir, 3, SaveProgress(3, 36), Rule(2)).path  # type: ignore[arg-type]
    destroy_engine(engine)
    if dist.get_rank() != 0:
        return {}
    dtype: Any = spec.train.precision
    exported = export_model(Path(path), spec, Path(data_dir), Path(run_dir) / "export", dtype=dtype)
    loaded, report = AutoModelForCausalLM.from_pretrained(exported.path, output_loading_info=True)
    with torch.no_grad():
        logits = loaded.eval()(input_ids=ids).logits.float()
    return {
        "missing": [*report["missing_keys"], *report["unexpected_keys"]],
        "difference": float((logits - trained).abs().max()),
        "scale": float(trained.abs().max()),
        "dtype": str(loaded.dtype),
    }


@pytest.mark.parametrize(
    ("architecture", "stage", "precision", "freeze"),
    [
        ("gpt2", 0, "fp32", ""),
        ("gpt2", 3, "fp32", "wpe.weight"),
        ("llama", 2, "fp32", ""),
        ("gpt2", 1, "bf16", "wpe.weight"),
        ("qwen2", 3, "bf16", "norm.weight"),
        ("mamba", 3, "fp32", ""),
    ],
)
def test_the_export_computes_what_the_engine_computes(
    gang: Gang, data_dir: Path, tmp_path: Path, architecture: str, stage: int, precision: str, freeze: str
) -> None:
    spec = job(architecture)
    train = spec.train.model_copy(update={"precision": precision})
    spec = spec.model_copy(update={"zero": spec.zero.model_copy(update={"stage": stage}), "train": train})
    found = gang.run(3, train_and_export, spec, str(data_dir), str(tmp_path), freeze)[0]
    assert found["missing"] == []
    assert found["dtype"] == {"fp32": "torch.float32", "bf16": "torch.bfloat16"}[precision]
    assert found["scale"] > 0.1
    # The same weights in the same precision; only kernels on other memory layouts may round differently.
    assert found["difference"] <= found["scale"] * (1e-6 if precision == "fp32" else 2**-8)
