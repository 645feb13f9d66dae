"""Tensors against slots, and how a comparison is told."""

from dataclasses import replace

import pytest

from orchestrator.weights.name_prefixes import any_wrapper, known_wrapper
from orchestrator.weights.tensor_match import Misshaped, Slot, Tensor, Wanted, compare
from orchestrator.weights.wording import few, misfit

pytestmark = pytest.mark.unit

NAMES = ("model.embed.weight", "model.layers.0.w", "model.layers.1.w", "model.norm.LayerNorm.weight", "lm_head.weight")
WANTED = Wanted("TinyForCausalLM", {name: Slot((4, 2)) for name in NAMES}, {}, "model", (r"inv_freq$",))


def found(*names: str, shape: tuple[int, ...] = (4, 2), dtype: str = "F32") -> dict[str, Tensor]:
    return {name: Tensor(shape, dtype, "model.safetensors") for name in names}


@pytest.mark.parametrize(
    "names",
    [
        NAMES,
        tuple(name.removeprefix("model.") for name in NAMES),
        tuple(f"model.{name}" for name in NAMES),
        tuple(name.replace("LayerNorm.weight", "LayerNorm.gamma") for name in NAMES),
        (*NAMES, "model.layers.0.rotary_emb.inv_freq"),
    ],
    ids=["as they are", "without the base model's name", "with it twice", "gamma", "a constant besides"],
)
def test_names_that_mean_the_same(names: tuple[str, ...]) -> None:
    compared = compare(WANTED, found(*names))
    assert compared.fits
    assert set(compared.filled) == set(NAMES)
    assert list(compared.filled.values()) == list(names[: len(NAMES)])


def test_everything_that_does_not_fit_is_named() -> None:
    tensors = found(*NAMES[:2], "v_head.weight", "embed.weight")
    tensors |= found("lm_head.weight", shape=(5, 2), dtype="I8")
    compared = compare(WANTED, tensors)
    assert not compared.fits
    assert compared.missing == NAMES[2:4]
    assert compared.unexpected == ("v_head.weight",)
    assert compared.misshaped == (Misshaped("lm_head.weight", (5, 2), (4, 2)),)
    assert compared.unusable == (("lm_head.weight", "I8"),)
    assert compared.repeated == (("model.embed.weight", "embed.weight"),)
    error = misfit("base", WANTED, list(tensors), compared)
    for part in (
        "TinyForCausalLM",
        "missing: model.layers.1.w, model.norm.LayerNorm.weight (2 of 5)",
        "unexpected: v_head.weight (1 of 5)",
        "lm_head.weight is [5, 2], expected [4, 2]",
        "stored as I8: lm_head.weight",
        "given twice: model.embed.weight and embed.weight",
    ):
        assert part in error.message
    assert error.exit_code == 2


def test_one_of_two_that_are_tied_is_enough() -> None:
    tied = replace(WANTED, tied={"lm_head.weight": "model.embed.weight"})
    assert compare(tied, found(*NAMES[:4])).fits
    assert compare(tied, found(*NAMES[1:])).fits
    assert compare(tied, found(*NAMES)).fits
    assert compare(tied, found(*NAMES[1:4])).missing == ("model.embed.weight",)
    assert compare(WANTED, found(*NAMES[:4])).missing == ("lm_head.weight",)


def test_only_what_the_task_draws_may_be_missing() -> None:
    assert compare(replace(WANTED, fresh=(r"^lm_head\.",)), found(*NAMES[:4])).fits
    assert not compare(replace(WANTED, fresh=(r"^score\.",)), found(*NAMES[:4])).fits


def test_a_buffer_of_integers_may_be_stored_as_such() -> None:
    wanted = replace(WANTED, slots={"model.steps": Slot((), floating=False)})
    assert compare(wanted, found("model.steps", shape=(), dtype="I64")).fits


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_floating_types_are_taken(dtype: str) -> None:
    assert compare(WANTED, found(*NAMES, dtype=dtype)).fits


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "I8", "U8", "I32", "BOOL", "F4"])
def test_others_are_quantised_or_wrong(dtype: str) -> None:
    compared = compare(WANTED, found(*NAMES, dtype=dtype))
    error = misfit("base", WANTED, list(NAMES), compared)
    assert f"stored as {dtype}: model.embed.weight" in error.message
    assert "quantised" in (error.hint or "")


@pytest.mark.parametrize(
    ("prefix", "origin"),
    [
        ("_orig_mod.", "torch.compile"),
        ("base_model.model.", "PEFT"),
        ("module.", "DistributedDataParallel"),
        ("_fsdp_wrapped_module.", "FullyShardedDataParallel"),
        ("student.backbone.", None),
    ],
)
def test_a_prefix_is_recognised(prefix: str, origin: str | None) -> None:
    names = [prefix + name for name in NAMES]
    error = misfit("base", WANTED, names, compare(WANTED, found(*names)))
    assert f"every name carries the prefix `{prefix}`" in error.message
    assert (origin or "for example") in error.message
    assert prefix in (error.hint or "")
    known = known_wrapper(names)
    assert (known.part if known else None) == (prefix if origin else None)


def test_a_wrapper_inside_the_names_is_recognised() -> None:
    names = ["model._orig_mod." + name.removeprefix("model.") for name in NAMES[:4]] + ["lm_head.weight"]
    error = misfit("base", WANTED, names, compare(WANTED, found(*names)))
    assert "4 of 5 names carry the prefix `_orig_mod.` of torch.compile" in error.message


def test_weights_of_another_architecture_are_no_prefix() -> None:
    names = [f"bert.encoder.layer.{i}.attention.weight" for i in range(6)]
    assert any_wrapper(names, WANTED) is None
    error = misfit("base", WANTED, names, compare(WANTED, found(*names)))
    assert "missing: model.embed.weight" in error.message
    assert "bert.encoder.layer.0.attention.weight" in error.message
    assert "another model" in (error.hint or "")


def test_unmerged_adapters_are_told_to_be_merged() -> None:
    names = [f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight" for name in NAMES]
    assert "merge_and_unload" in (misfit("base", WANTED, names, compare(WANTED, found(*names))).hint or "")


def test_names_are_bounded() -> None:
    assert few([f"n{i}" for i in range(1000)]) == "n0, n1, n2, n3, n4 and 995 more"
    assert few(["a", "b"]) == "a, b"
    names = [f"x.{i}" for i in range(10_000)]
    assert len(misfit("base", WANTED, names, compare(WANTED, found(*names))).message) < 1000


def test_a_resized_vocabulary_is_told_apart_from_another_size() -> None:
    slots = {"model.embed.weight": Slot((4, 2)), "model.w": Slot((2, 2))}
    wanted = replace(WANTED, slots=slots)
    resized = {"model.embed.weight": Tensor((6, 2), "F32", "f"), "model.w": Tensor((2, 2), "F32", "f")}
    assert "vocab_size" in (misfit("base", wanted, list(resized), compare(wanted, resized)).hint or "")
    other = {name: Tensor((9, 9), "F32", "f") for name in slots}
    assert "another size" in (misfit("base", wanted, list(other), compare(wanted, other)).hint or "")
