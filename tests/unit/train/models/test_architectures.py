import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.domain.errors import UsageError
from orchestrator.train.models.architectures import ARCHITECTURES, build_model, model_config, objective_of
from orchestrator.train.models.linear_loss import install_chunked_head
from orchestrator.train.models.tasks import IGNORE, CausalLM, MaskedLM
from tests.selection import every_day
from tests.unit.train.builders import manifest_with, samples_of, spec_with

pytestmark = pytest.mark.unit

ROPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}
TINY: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 2},
    "gpt_neo": {"num_layers": 3, "hidden_size": 32, "num_heads": 2, "window_size": 4},
    "llama": ROPE | {"num_key_value_heads": 2},
    "mistral": ROPE | {"num_key_value_heads": 1},
    "qwen2": {k: v for k, v in ROPE.items() if k != "head_dim"} | {"num_key_value_heads": 2},
    "qwen3": ROPE | {"num_key_value_heads": 2},
    "bert": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}


def spec(architecture: str, **config: Any) -> Any:
    return spec_with({"architecture": architecture, "config": TINY[architecture] | config})


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_built_from_the_seed_alone(architecture: str) -> None:
    """The same weights on every rank, whatever the process drew before, and its random state is left alone."""
    torch.manual_seed(1)
    first = build_model(spec(architecture), manifest_with())
    drawn = torch.rand(1)
    torch.manual_seed(2)
    second = build_model(spec(architecture), manifest_with())
    for (name, one), (_, two) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(one, two), name
        assert one.dtype == torch.float32
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    other = spec(architecture)
    other = other.model_copy(update={"train": other.train.model_copy(update={"seed": 1})})
    third = build_model(other, manifest_with())
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), third.parameters(), strict=True))


def same_but_for_weights(drawn: Any, bare: Any) -> None:
    """What a restore does not replace, and what it hangs on."""
    saved = set(drawn.state_dict())
    assert set(bare.state_dict()) == saved
    computed = dict(bare.named_buffers())
    assert computed.keys() == dict(drawn.named_buffers()).keys()
    for name, buffer in drawn.named_buffers():
        assert buffer.dtype == computed[name].dtype, name
        assert name in saved or torch.equal(buffer, computed[name]), name
    for (name, one), (other, two) in zip(drawn.named_parameters(), bare.named_parameters(), strict=True):
        assert (name, one.shape, one.dtype, one.requires_grad) == (other, two.shape, two.dtype, two.requires_grad)
        assert two.isnan().all(), name
    assert drawn.training == bare.training
    assert drawn.config.to_dict() == bare.config.to_dict()
    assert drawn.config._attn_implementation == bare.config._attn_implementation
    assert str(drawn) == str(bare)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_nothing_is_drawn_where_weights_are_restored(architecture: str) -> None:
    drawn = build_model(spec(architecture), manifest_with())
    torch.manual_seed(1)
    bare = build_model(spec(architecture), manifest_with(), restored=True)
    following = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(following, torch.rand(1))
    same_but_for_weights(drawn, bare)
    bare.load_state_dict(drawn.state_dict())
    tokens = {"input_ids": torch.arange(10, 26)[None]}
    with torch.no_grad():
        assert torch.equal(drawn.eval()(**tokens).logits, bare.eval()(**tokens).logits)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_padding_and_company_do_not_change_a_samples_loss(architecture: str) -> None:
    """What the loss normalisation rests on: the sum over a batch is the sum over its samples, padded or not."""
    model = build_model(spec(architecture), manifest_with())
    task: Any = CausalLM(pad_id=1)
    if objective_of(model.config) == "masked":
        task = MaskedLM(pad_id=1, mask_id=2, vocab_size=300, probability=0.3, seed=0)
    samples = samples_of([5, 6, 7, 8, 9], list(range(20, 36)), [40, 41])
    from orchestrator.train.batch_feed import rows

    with torch.no_grad():
        together = task.loss(model, task.batch(samples)).item()
        apart = sum(task.loss(model, task.batch(rows(samples, i, i + 1))).item() for i in range(3))
    assert together == pytest.approx(apart, rel=1e-5)


@pytest.mark.parametrize("architecture", every_day(sorted(ARCHITECTURES), "bert", "gpt2", "llama"))
def test_a_loss_in_chunks_is_the_plain_loss(architecture: str) -> None:
    """Of every architecture: its logits are nothing but its head's output, and ties stay tied."""
    plain, chunked = (build_model(spec(architecture), manifest_with()) for _ in range(2))
    task: Any = CausalLM(pad_id=1)
    if objective_of(plain.config) == "masked":
        task = MaskedLM(pad_id=1, mask_id=2, vocab_size=300, probability=0.3, seed=0)
    head = install_chunked_head(chunked, 5, IGNORE)
    assert head is not None
    batch = task.batch(samples_of([5, 6, 7, 8, 9], list(range(20, 36)), [40, 41]))
    expected, found = task.loss(plain, batch), replace(task, head=head).loss(chunked, batch)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    expected.backward()
    found.backward()
    largest = max(float(parameter.grad.abs().max()) for parameter in plain.parameters())
    gradients = {name: parameter.grad for name, parameter in chunked.named_parameters()}
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients.pop(name), parameter.grad, rtol=1e-4, atol=1e-6 * largest)
    assert not gradients
    assert torch.equal(chunked(**batch.inputs).logits, plain(**batch.inputs).logits)


@pytest.mark.parametrize("architecture", every_day(sorted(ARCHITECTURES), "gpt2", "llama", "mamba"))
def test_activations_are_recomputed_block_by_block(architecture: str) -> None:
    """What is in a block runs once more in the backward pass, and nothing else does."""
    job = spec_with({"architecture": architecture, "config": TINY[architecture]}, {"activation_checkpointing": True})
    model: Any = build_model(job, manifest_with())
    (layers,) = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    first = [next(m for m in layer.modules() if list(m.parameters(recurse=False))) for layer in layers]
    calls: Counter[Any] = Counter()
    for module in (*first, model.get_input_embeddings(), model.get_output_embeddings()):
        module.register_forward_pre_hook(lambda module, _: calls.update([module]))
    model(input_ids=torch.arange(10, 26)[None]).logits.sum().backward()
    assert len(layers) == model.config.num_hidden_layers
    assert [calls.pop(module) for module in first] == [2] * len(layers)
    assert list(calls.values()) == [1, 1]


def test_scaled_logits_keep_the_plain_loss() -> None:
    model: Any = build_model(spec("llama"), manifest_with())
    model.config.logit_scale = 0.0625
    assert install_chunked_head(model, 5, IGNORE) is None


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_no_dropout_unless_asked_for(architecture: str) -> None:
    config = model_config(spec(architecture), manifest_with())
    for field in ARCHITECTURES[architecture].dropouts:
        assert getattr(config, field) == 0.0
        assert getattr(model_config(spec(architecture, **{field: 0.25}), manifest_with()), field) == 0.25
    dropping = [m for m in build_model(spec(architecture), manifest_with()).modules() if getattr(m, "p", 0)]
    assert not [m for m in dropping if isinstance(m, torch.nn.Dropout)]


def test_gpt_neo_alternates_whatever_the_depth() -> None:
    assert model_config(spec("gpt_neo"), manifest_with()).attention_layers == ["global", "local", "global"]


def test_tokenizer_and_length_decide_sizes() -> None:
    config = model_config(spec("gpt2"), manifest_with())
    assert (config.vocab_size, config.n_positions, config.eos_token_id, config.pad_token_id) == (300, 16, 0, 1)
    assert model_config(spec("gpt2", n_positions=64), manifest_with()).n_positions == 64
    # Where padding is a real token too, its embedding must learn.
    assert model_config(spec("llama"), manifest_with(pad_id=0)).pad_token_id is None


def refused(config: dict[str, Any], architecture: str = "gpt2") -> UsageError:
    """Past the checks of the spec, which may know the field too."""
    value = spec(architecture)
    model = value.model.model_copy(update={"config": TINY[architecture] | config})
    with pytest.raises(UsageError) as caught:
        model_config(value.model_copy(update={"model": model}), manifest_with())
    return caught.value


def test_unknown_field_names_the_close_one() -> None:
    error = refused({"n_layers": 3})
    assert "n_layers" in error.message
    assert error.hint == "Did you mean n_layer?"


def test_fields_that_are_not_the_users() -> None:
    assert "vocab_size" in refused({"vocab_size": 5}).message


def test_too_few_positions() -> None:
    assert "16" in refused({"n_positions": 8}).message


def test_heads_that_do_not_divide() -> None:
    value = spec("gpt2")
    model = value.model.model_copy(update={"config": {"n_layer": 1, "n_embd": 32, "n_head": 5}})
    with pytest.raises(UsageError, match=r"model\.config"):
        build_model(value.model_copy(update={"model": model}), manifest_with())


def pretrained(directory: Path, **model: Any) -> Any:
    value = spec("gpt2")
    replaced = value.model.model_copy(
        update={"architecture": None, "config": {}, "pretrained": str(directory), **model}
    )
    return value.model_copy(update={"model": replaced})


def test_pretrained_directory(tmp_path: Path) -> None:
    original = build_model(spec("gpt2", resid_pdrop=0.1), manifest_with())
    original.to(torch.bfloat16).save_pretrained(tmp_path)  # type: ignore[operator]
    loaded = build_model(pretrained(tmp_path), manifest_with())
    assert loaded.training
    assert loaded.config.resid_pdrop == 0.0
    same_but_for_weights(loaded, build_model(pretrained(tmp_path), manifest_with(), restored=True))
    for one, two in zip(original.parameters(), loaded.parameters(), strict=True):
        assert two.dtype == torch.float32
        assert torch.equal(one.float(), two)
    with pytest.raises(UsageError, match="301 tokens"):
        build_model(pretrained(tmp_path), manifest_with(vocab_size=301))
    with pytest.raises(UsageError, match="17"):
        build_model(pretrained(tmp_path), manifest_with(sequence_length=17))


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no directory"):
        build_model(pretrained(tmp_path / "nowhere"), manifest_with())


def test_unreachable_hub_is_said_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub at an address nobody listens on."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(UsageError, match="cannot be reached"):
        build_model(pretrained(Path("nobody/no-such-model-here")), manifest_with())
    assert time.monotonic() - started < 10
