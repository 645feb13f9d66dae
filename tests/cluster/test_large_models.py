"""ZeRO-3 of models larger than one device: the same numbers, and a process holds no more than its share of them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.spec.job import JobSpec
from orchestrator.train.models.architectures import ARCHITECTURES
from orchestrator.train.models.shares import Keep
from tests.cluster.conftest import TINY_MODELS
from tests.cluster.zero_gang import Gang
from tests.selection import every_day
from tests.unit.train.bases import base_spec
from tests.unit.train.builders import manifest_with, spec_with

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def gang(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gang]:
    gang = Gang(3, tmp_path_factory.mktemp("groups"))
    yield gang
    gang.close()


def spec_of(architecture: str, precision: str = "fp32", **zero: Any) -> JobSpec:
    return spec_with(
        {"architecture": architecture, "config": TINY_MODELS[architecture]},
        {"precision": precision},
        {"stage": 3} | zero,
    )


def built(spec: JobSpec, restored: bool = False, plainly: bool = False) -> Any:
    """An engine as a worker builds it. `plainly`: as DeepSpeed partitions a whole model."""
    import torch
    import torch.distributed as dist

    from orchestrator.train.engine.deepspeed_config import EngineShape
    from orchestrator.train.engine.engine import build_engine, import_deepspeed
    from orchestrator.train.models.architectures import build_model
    from orchestrator.train.models.shares import is_sharded, keep_for

    import_deepspeed("cpu")
    keep = None if plainly else keep_for(spec, dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    model = build_model(spec, manifest_with(), restored=restored, keep=keep)
    assert is_sharded(model) == (spec.zero.stage == 3 and not plainly)
    return build_engine(spec, model, EngineShape(dist.get_world_size(), 4, 1, "cpu"), restored=restored)


def outline(value: Any) -> Any:
    """What can be compared of a tensor whose padding may be anything."""
    return (value.shape, value.dtype, value.device) if hasattr(value, "untyped_storage") else value


def description(engine: Any) -> list[Any]:
    """What DeepSpeed knows of every parameter and buffer, and where their state lies."""
    from orchestrator.train.zero.zero_layout import describe_tensors, partitions

    fields = ("ds_id", "ds_tensor", "ds_shape", "ds_numel", "ds_numel_aligned", "ds_persist", "ds_status")
    found: list[Any] = [
        (name, p.shape, p.device, p.dtype, p.requires_grad, *(outline(getattr(p, field, None)) for field in fields))
        for name, p in engine.module.named_parameters(remove_duplicate=False)
    ]
    found += [(name, b.dtype, b.device, b.double().sum().item()) for name, b in engine.module.named_buffers()]
    found += [(part.group, part.flat.numel(), part.fragments) for part in partitions(engine)]
    return [*found, describe_tensors(engine), len(getattr(engine.optimizer, "persistent_parameters", []))]


def compared_with_plain(spec: JobSpec) -> list[str]:
    """How an engine of shares differs from one of whole parameters, after both were asked for the same loss."""
    import deepspeed
    import torch

    from orchestrator.train.engine.engine import destroy_engine
    from orchestrator.train.zero.zero_layout import partitions

    def observed(engine: Any) -> tuple[list[Any], dict[str, torch.Tensor], torch.Tensor]:
        described, values = description(engine), {}
        for name, parameter in engine.module.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter]):
                values[name] = parameter.detach().clone()
        for part in partitions(engine):
            for f in part.fragments:
                values[f"{f.name}[{f.start}]"] = part.flat.detach().view(-1)[f.offset : f.offset + f.length].clone()
        logits = engine(input_ids=torch.arange(16)[None]).logits
        engine.backward(logits.float().pow(2).mean())
        engine.step()
        return described, values, logits.detach()

    results = []
    for plainly in (True, False):
        engine = built(spec, plainly=plainly)
        results.append(observed(engine))
        destroy_engine(engine)
        del engine
    (described, values, logits), (found, others, more) = results
    differences = [f"{one} != {other}" for one, other in zip(described, found, strict=True) if one != other]
    differences += [name for name, value in values.items() if not torch.equal(value, others[name])]
    return differences + (["logits"] if not torch.equal(logits, more) else [])


def compared_with_plain_each(specs: list[JobSpec]) -> list[list[str]]:
    return [compared_with_plain(spec) for spec in specs]


FAMILIES = {"some": {"gpt2", "mamba"}, "others": ARCHITECTURES.keys() - {"gpt2", "mamba"}}


@pytest.mark.parametrize("family", every_day(FAMILIES, "some"))
def test_partitions_are_those_that_deepspeed_makes_of_the_whole_model(family: str, gang: Gang) -> None:
    """Bit for bit, for every architecture and precision, with parameters that do not divide and ones kept whole."""
    specs = [spec_of(architecture) for architecture in sorted(FAMILIES[family])]
    specs.append(spec_of("llama", "bf16"))
    specs.append(spec_of("gpt2", "bf16", offload_params={"device": "cpu"}, offload_optimizer={"device": "cpu"}))
    # At the other stages parameters are cast before the engine gets them, as on a GPU.
    specs += [spec_of("gpt2", "bf16", stage=stage) for stage in (0, 1, 2)]
    assert gang.run(2, compared_with_plain_each, specs) == [[[]] * len(specs)] * 2
    assert gang.run(3, compared_with_plain, spec_of("gpt2")) == [[]] * 3
    assert gang.run(1, compared_with_plain, spec_of("gpt2")) == [[]]


WIDE = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
"""About 77 million parameters for a Llama."""


def memory_taken(spec: JobSpec, restored: bool) -> dict[str, int]:
    """Bytes by which this rank's resident memory rises at most while a model is built, and the model's size."""
    import ctypes
    import gc
    import re

    import torch
    import torch.distributed as dist

    from orchestrator.train.models.architectures import build_model, model_config
    from orchestrator.train.models.shares import keep_for

    def status(field: str) -> int:
        found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        assert found is not None
        return int(found[1]) << 10

    def build(value: JobSpec) -> Any:
        keep = keep_for(value, dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
        return build_model(value, manifest_with(), restored=restored, keep=keep)

    model_config(spec, manifest_with())  # what is imported and allocated once
    build(spec_of("llama"))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from now on
    before = status("VmRSS")
    model = build(spec)
    grown = status("VmHWM") - before
    sizes = [4 * parameter.numel() for parameter in model.parameters()]
    return {"grown": grown, "whole": sum(sizes), "largest": max(sizes)}


ALLOCATOR_BYTES = 48 << 20


@pytest.mark.parametrize("start", ["fresh", "restored", "pretrained"])
def test_a_rank_holds_its_share_of_the_model(gang: Gang, tmp_path: Path, start: str) -> None:
    """Beside it the parameters that are being written, or pages of the files, which the system can take back; and what
    the allocator does not return."""
    from orchestrator.train.models.shares import RESIDENT_BYTES

    spec, beside_bytes = spec_with({"architecture": "llama", "config": WIDE}, zero={"stage": 3}), RESIDENT_BYTES
    if start == "pretrained":
        beside_bytes = write_wide(spec, tmp_path)
        spec = base_spec(tmp_path).model_copy(update={"zero": spec.zero})
    for found in gang.run(2, memory_taken, spec, start == "restored"):
        assert found["largest"] < beside_bytes
        assert found["grown"] < found["whole"] // 2 + beside_bytes + ALLOCATOR_BYTES, found


def write_wide(spec: JobSpec, directory: Path) -> int:
    """Bytes of the files of a pretrained model in bf16."""
    import torch

    from orchestrator.train.models.architectures import build_model

    model: Any = build_model(spec, manifest_with(), keep=Keep(dtype=torch.bfloat16))
    model.save_pretrained(directory)
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def threads_of(offload: str, chosen: str) -> tuple[int, int]:
    """Threads of a worker on a GPU, and the cores that it may use."""
    import torch

    from orchestrator.domain.devices.cpu_threads import CHOSEN_VARIABLE, THREADS_VARIABLE
    from orchestrator.train.worker import _set_offload_threads

    spec = spec_of("gpt2", stage=1, offload_optimizer={"device": offload})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CHOSEN_VARIABLE, chosen)
        patch.setenv(THREADS_VARIABLE, "1")
        _set_offload_threads(spec, torch.device("cuda", 0))
        found = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.distributed.barrier()  # a rank that leaves at once may do so before the others have connected to it
    return found, len(os.sched_getaffinity(0))


def test_an_offloaded_optimizer_gets_a_share_of_the_host(gang: Gang) -> None:
    """Unless the user chose the number of threads."""
    for ranks in (1, 2):
        for found, cores in gang.run(ranks, threads_of, "cpu", "0"):
            assert found == max(1, cores // ranks)
        assert {found for found, _ in gang.run(ranks, threads_of, "cpu", "1")} == {1}
        assert {found for found, _ in gang.run(ranks, threads_of, "none", "0")} == {1}
