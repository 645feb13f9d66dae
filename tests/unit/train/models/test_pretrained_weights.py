"""Pretrained weights: either all of them are taken from the files, or their names are told and nothing is drawn."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from orchestrator.domain.errors import UsageError, WeightsError
from orchestrator.train.models import base_check
from orchestrator.train.models.architectures import ARCHITECTURES, FRESH, build_model
from orchestrator.train.models.base_check import check_base
from orchestrator.train.models.pretrained_weights import check_report, wanted_of
from orchestrator.train.models.shares import Keep, take_share
from tests.unit.train.bases import (
    FILE,
    Rewrite,
    as_torch_file,
    as_torch_shards,
    base_spec,
    fresh_spec,
    rewrite,
    set_config,
    write_base,
)
from tests.unit.train.builders import manifest_with

pytestmark = pytest.mark.unit


def check(directory: Path, thorough: bool = True) -> None:
    check_base({"spec": base_spec(directory).model_dump(mode="json"), "thorough": thorough})


def loaded(directory: Path) -> Any:
    return build_model(base_spec(directory), manifest_with())


def same_weights(one: Any, two: Any) -> None:
    first, second = dict(one.named_parameters()), dict(two.named_parameters())
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert second[name].dtype == torch.float32
        assert torch.equal(value.float(), second[name]), name


def loaded_in_shares(directory: Path) -> Any:
    """By one rank that keeps everything, tensor by tensor."""
    return build_model(base_spec(directory), manifest_with(), keep=Keep())


def same_shares(saved: Any, directory: Path, world_size: int = 3) -> None:
    """What each rank reads is its own part of the model."""
    for rank in range(world_size):
        keep = Keep(rank, world_size, sharded=True)
        found = dict(build_model(base_spec(directory), manifest_with(), keep=keep).named_parameters())
        for name, value in saved.named_parameters():
            part = keep.part(value.numel())
            assert torch.equal(take_share(found[name]), value.float().view(-1)[part.start : part.end]), name


def refused(directory: Path, *parts: str) -> None:
    """By the check that comes before data is tokenised, and by loading alone, whole or in shares."""
    for attempt in (check, loaded, loaded_in_shares):
        with pytest.raises(UsageError) as caught:
            attempt(directory)
        text = f"{caught.value.message}\n{caught.value.hint}"
        assert [part for part in parts if part not in text] == [], text
        assert caught.value.exit_code == 2


# Good shapes ------------------------------------------------------------------------------------------------------


def as_base_model(name: str) -> Rewrite:
    """Names as the model without a head has them."""
    return lambda tensors: {key.removeprefix(f"{name}."): value for key, value in tensors.items()}


SPARE: dict[str, list[str]] = {
    "gpt2": ["transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias"],
    "gpt_neo": ["transformer.h.0.attn.attention.bias", "transformer.h.0.attn.attention.masked_bias"],
    "bert": [
        "bert.embeddings.position_ids",
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "cls.seq_relationship.weight",
        "cls.seq_relationship.bias",
    ],
    "llama": ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"],
}
"""What published checkpoints of these have besides the weights."""


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_every_weight_comes_from_the_files(tmp_path: Path, architecture: str) -> None:
    """In the shapes that transformers writes, wrote, or takes: each gives one and the same model."""
    saved = write_base(tmp_path / "base", architecture)
    prefix = saved.base_model_prefix

    def shape(name: str) -> Path:
        shutil.copytree(tmp_path / "base", tmp_path / name)
        return tmp_path / name

    rewrite(shape("prefixless"), as_base_model(prefix))
    rewrite(shape("doubled"), lambda tensors: {f"{prefix}.{name}": value for name, value in tensors.items()})
    as_torch_file(shape("bin"))
    as_torch_shards(shape("bin-shards"))
    (shape("both") / "pytorch_model.bin").write_bytes(b"\x80\4 is not looked at")
    saved.save_pretrained(tmp_path / "shards", max_shard_size="2KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    rewrite(shape("spare"), lambda tensors: tensors | {name: torch.ones(2) for name in SPARE.get(architecture, [])})
    rewrite(shape("gamma"), lambda tensors: {_tensorflow(name): value for name, value in tensors.items()})
    for directory in sorted(tmp_path.iterdir()):
        check(directory)
        same_weights(saved, loaded(directory))
        same_weights(saved, loaded_in_shares(directory))
        same_shares(saved, directory)


def _tensorflow(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_floating_type_is_taken(tmp_path: Path, dtype: torch.dtype) -> None:
    saved = write_base(tmp_path, "qwen2", dtype)
    check(tmp_path)
    same_weights(saved, loaded(tmp_path))
    same_shares(saved, tmp_path)


def test_tied_weights_are_saved_under_either_name_or_both(tmp_path: Path) -> None:
    saved = write_base(tmp_path / "base", "llama", tie_word_embeddings=True)
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    assert head not in load_file(tmp_path / "base" / FILE)
    changes: dict[str, Rewrite] = {
        "as-saved": lambda tensors: tensors,
        "head": lambda tensors: {(head if name == embedding else name): value for name, value in tensors.items()},
        "both": lambda tensors: tensors | {head: tensors[embedding].clone()},
    }
    for name, change in changes.items():
        shutil.copytree(tmp_path / "base", tmp_path / name)
        rewrite(tmp_path / name, change)
        check(tmp_path / name)
        for model in (loaded(tmp_path / name), loaded_in_shares(tmp_path / name)):
            assert model.lm_head.weight is model.model.embed_tokens.weight
            same_weights(saved, model)
    rewrite(tmp_path / "both", lambda tensors: tensors | {head: tensors[embedding] + 1})
    refused(tmp_path / "both", f"ties {head} to {embedding}", "different values", "tie_word_embeddings: false")
    rewrite(tmp_path / "head", lambda tensors: {k: v for k, v in tensors.items() if k != head})
    refused(tmp_path / "head", f"missing: {embedding}")


def test_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    saved = write_base(tmp_path / "blobs")
    snapshot = tmp_path / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for file in (tmp_path / "blobs").iterdir():
        (snapshot / file.name).symlink_to(os.path.relpath(file, snapshot))
    check(snapshot)
    same_weights(saved, loaded(snapshot))


def test_a_restore_needs_no_weights(tmp_path: Path) -> None:
    write_base(tmp_path)
    (tmp_path / FILE).unlink()
    bare = build_model(base_spec(tmp_path), manifest_with(), restored=True)
    assert all(parameter.isnan().all() for parameter in bare.parameters())


# Bad ones ---------------------------------------------------------------------------------------------------------


def without(part: str) -> Rewrite:
    return lambda tensors: {name: value for name, value in tensors.items() if part not in name}


def prefixed(prefix: str) -> Rewrite:
    return lambda tensors: {prefix + name: value for name, value in tensors.items()}


def replaced(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Rewrite:
    return lambda tensors: tensors | {name: change(tensors[name])}


def adding(**more: torch.Tensor) -> Rewrite:
    return lambda tensors: tensors | {name.replace("__", "."): value for name, value in more.items()}


UP = "model.layers.1.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
BAD: dict[str, tuple[Rewrite, list[str]]] = {
    "torch.compile": (prefixed("_orig_mod."), ["every name", "`_orig_mod.` of torch.compile", "strip"]),
    "PEFT": (prefixed("base_model.model."), ["`base_model.model.` of PEFT"]),
    "DDP": (prefixed("module."), ["`module.` of DistributedDataParallel"]),
    "another wrapper": (prefixed("student.inner."), ["every name carries the prefix `student.inner.`"]),
    "FSDP inside": (
        lambda t: {name.replace("layers.", "layers._fsdp_wrapped_module."): value for name, value in t.items()},
        ["`_fsdp_wrapped_module.`"],
    ),
    "no layer": (without("layers.1."), ["missing: model.layers.1.self_attn.q_proj.weight", "and 4 more", "(9 of 21)"]),
    "no head": (without("lm_head"), ["missing: lm_head.weight (1 of 21)", "tie_word_embeddings"]),
    "one tensor lost": (without("norm.weight"), ["missing: ", "model.norm.weight"]),
    "a layer too many": (adding(model__layers__2__w=torch.ones(2)), ["unexpected: model.layers.2.w (1 of 22)"]),
    "a value head": (adding(v_head__summary__weight=torch.ones(1, 8)), ["unexpected: v_head.summary.weight"]),
    "wider": (replaced(UP, lambda t: torch.ones(24, 8)), [f"{UP} is [24, 8], expected [16, 8]", "another size"]),
    "narrower": (replaced(UP, lambda t: t[:8]), [f"{UP} is [8, 8], expected [16, 8]"]),
    "transposed": (replaced(UP, lambda t: t.T), [f"{UP} is [8, 16], expected [16, 8]"]),
    "flat": (replaced(UP, lambda t: t.flatten()), [f"{UP} is [128], expected [16, 8]"]),
    "nothing in it": (replaced(UP, lambda t: t[:0]), [f"{UP} is [0, 8], expected [16, 8]"]),
    "other rows": (replaced(EMBEDDING, lambda t: t[:200]), [f"{EMBEDDING} is [200, 8]", "vocab_size"]),
    "8-bit floats": (replaced(UP, lambda t: t.to(torch.float8_e4m3fn)), [f"stored as F8_E4M3: {UP}", "quantised"]),
    "integers": (replaced(UP, lambda t: t.to(torch.int8)), [f"stored as I8: {UP}", "quantised"]),
    "GPTQ": (
        lambda t: without(UP)(t) | {UP.replace("weight", "qweight"): torch.ones(1, 8, dtype=torch.int32)},
        [f"missing: {UP}", "unexpected: model.layers.1.mlp.up_proj.qweight", "quantised"],
    ),
    "NaN": (replaced(UP, lambda t: t.index_fill(0, torch.tensor([3]), torch.nan)), ["NaN or infinite", UP]),
    "infinite": (replaced(UP, lambda t: t.index_fill(0, torch.tensor([3]), -torch.inf)), ["NaN or infinite", UP]),
    "given twice": (adding(embed_tokens__weight=torch.ones(300, 8)), ["given twice: ", EMBEDDING]),
    "LoRA beside": (
        adding(model__layers__0__self_attn__q_proj__lora_A__weight=torch.ones(2, 8)),
        ["unexpected: model.layers.0.self_attn.q_proj.lora_A.weight", "merge_and_unload"],
    ),
}


@pytest.mark.parametrize("case", sorted(BAD))
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_what_does_not_fit_is_named(tmp_path: Path, case: str, kind: str) -> None:
    write_base(tmp_path)
    change, parts = BAD[case]
    rewrite(tmp_path, change)
    if kind == "bin":
        as_torch_file(tmp_path)
        parts = [part.replace("F8_E4M3", "torch.float8_e4m3fn").replace("I8", "torch.int8") for part in parts]
    refused(tmp_path, *parts)


def test_weights_that_were_never_written(tmp_path: Path) -> None:
    """A download that reserved its space: header and names are right, all else is zero."""
    write_base(tmp_path)
    rewrite(tmp_path, lambda tensors: {name: torch.zeros_like(value) for name, value in tensors.items()})
    with pytest.raises(WeightsError, match=r"only zeros in .*embed_tokens"):
        check(tmp_path)


def test_a_head_of_another_task(tmp_path: Path) -> None:
    """BERT without its masked-language head, and a classifier in place of the language model's head."""
    write_base(tmp_path / "bert", "bert")
    rewrite(tmp_path / "bert", lambda tensors: as_base_model("bert")(without("cls.")(tensors)))
    refused(tmp_path / "bert", "missing: cls.predictions.bias", "AutoModelForMaskedLM")
    write_base(tmp_path / "llama")
    rewrite(tmp_path / "llama", lambda tensors: without("lm_head")(tensors) | {"score.weight": torch.ones(2, 8)})
    refused(tmp_path / "llama", "missing: lm_head.weight", "unexpected: score.weight")


def test_a_config_of_another_model(tmp_path: Path) -> None:
    write_base(tmp_path / "llama")
    write_base(tmp_path / "bert", "bert")
    shutil.copy(tmp_path / "bert" / FILE, tmp_path / "llama" / FILE)
    refused(
        tmp_path / "llama", "LlamaForCausalLM", "missing: model.embed_tokens.weight", "unexpected: ", "another model"
    )
    set_config(tmp_path / "bert", num_hidden_layers=3)
    refused(tmp_path / "bert", "missing: bert.encoder.layer.2.")
    set_config(tmp_path / "bert", num_hidden_layers=1)
    refused(tmp_path / "bert", "unexpected: bert.encoder.layer.1.")


@pytest.mark.parametrize("fields", [{"hidden_size": "wide"}, {"hidden_size": -8}, {"num_attention_heads": 3}])
def test_a_config_that_describes_no_model(tmp_path: Path, fields: dict[str, Any]) -> None:
    write_base(tmp_path)
    set_config(tmp_path, **fields)
    with pytest.raises(UsageError, match="config"):
        check(tmp_path)


def test_shards_of_torch_files(tmp_path: Path) -> None:
    write_base(tmp_path / "lost")
    as_torch_shards(tmp_path / "lost", lost=UP)
    refused(tmp_path / "lost", f"missing: {UP}")
    (tmp_path / "lost" / "pytorch_model-00002-of-00002.bin").unlink()
    refused(tmp_path / "lost", "pytorch_model-00002-of-00002.bin does not exist")
    write_base(tmp_path / "twice")
    as_torch_shards(tmp_path / "twice")
    first, second = sorted((tmp_path / "twice").glob("*.bin"))
    torch.save(torch.load(first) | torch.load(second), second)
    refused(tmp_path / "twice", "holds lm_head.weight, which another file also contains")


class Trap:
    """Unpickling it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_torch_file_is_run(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    tensors = load_file(tmp_path / "base" / FILE)
    as_torch_file(tmp_path / "base")
    torch.save(tensors | {"model.norm.weight": Trap(tmp_path / "sprung")}, tmp_path / "base" / "pytorch_model.bin")
    refused(tmp_path / "base", "pytorch_model.bin", "can run code", "save_pretrained")
    assert not (tmp_path / "sprung").exists()


def test_what_else_torch_saves(tmp_path: Path) -> None:
    write_base(tmp_path)
    tensors = load_file(tmp_path / FILE)
    as_torch_file(tmp_path)
    file = tmp_path / "pytorch_model.bin"
    torch.save({"model": tensors, "optimizer": {"lr": 0.1}, "step": 5}, file)
    refused(tmp_path, "holds more than a model's tensors: model, optimizer, step")
    torch.save(list(tensors.values()), file)
    refused(tmp_path, "holds a list")
    torch.save(tensors, file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    refused(tmp_path, "pytorch_model.bin is cut short")
    torch.save(tensors, file, _use_new_zipfile_serialization=False)
    check(tmp_path)
    file.write_bytes(file.read_bytes()[:-300])
    refused(tmp_path, "pytorch_model.bin is damaged")


# How the check works ----------------------------------------------------------------------------------------------


def test_the_check_holds_no_weights_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and shapes take no values; values are left to loading where there are too many of them."""
    write_base(tmp_path)
    rewrite(tmp_path, BAD["NaN"][0])
    check(tmp_path, thorough=False)
    monkeypatch.setattr(base_check, "MAX_READ_BYTES", 100)
    check(tmp_path)
    for load in (loaded, loaded_in_shares):
        with pytest.raises(WeightsError, match="NaN"):
            load(tmp_path)
    with torch.device("meta"):
        assert wanted_of(loaded_config(tmp_path)).model == "LlamaForCausalLM"


def loaded_config(directory: Path) -> Any:
    from orchestrator.train.models.pretrained import base_config

    return base_config(base_spec(directory), 16)


def test_positions_are_judged_before_data_is_prepared(tmp_path: Path) -> None:
    write_base(tmp_path)
    set_config(tmp_path, max_position_embeddings=8)
    with pytest.raises(UsageError, match="8 positions"):
        check(tmp_path)


def test_a_report_of_transformers_is_heeded_besides() -> None:
    """Should it ever judge otherwise than the comparison."""
    good: dict[str, Any] = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
    check_report("base", good)
    for key, value in (("missing_keys", {"a.b"}), ("unexpected_keys", {"c"}), ("mismatched_keys", {("d", 1, 2)})):
        with pytest.raises(WeightsError, match=r"a\.b|c|d"):
            check_report("base", good | {key: value})


def test_a_head_that_the_task_draws_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No task of today's does; one that does gets it from the seed, the same on every rank."""
    saved = write_base(tmp_path)
    rewrite(tmp_path, without("lm_head"))
    refused(tmp_path, "missing: lm_head.weight")
    monkeypatch.setitem(FRESH, "causal", (r"^lm_head\.weight$",))
    check(tmp_path)
    torch.manual_seed(1)
    first = loaded(tmp_path)
    torch.manual_seed(2)
    second = loaded(tmp_path)
    same_weights(first, second)
    assert torch.equal(first.model.norm.weight, saved.model.norm.weight)
    assert not torch.equal(first.lm_head.weight, saved.lm_head.weight)
    same_weights(first, loaded_in_shares(tmp_path))


def test_a_model_from_scratch_has_nothing_to_check() -> None:
    check_base({"spec": fresh_spec("llama").model_dump(mode="json"), "thorough": True})
