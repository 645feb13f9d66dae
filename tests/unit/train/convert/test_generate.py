"""Text from a model directory: the same weights and settings as transformers takes, or an error with names."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from orchestrator.domain.errors import WeightsError
from orchestrator.train.convert.generate import generate_text
from tests.unit.train.bases import FILE, Tensors, rewrite, write_base

pytestmark = pytest.mark.unit


def exported(directory: Path) -> Path:
    """A model with a tokenizer of 300 tokens, as `convoy generate` takes it."""
    from orchestrator.data.tokens import tokenizer
    from orchestrator.spec.model import TokenizerTrainSpec

    write_base(directory)
    tokenizer.train(["some words " * 50], TokenizerTrainSpec(vocab_size=300)).save(directory)
    return directory


def test_generation_takes_the_same_weights_and_settings_as_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    base = exported(tmp_path)
    text = generate_text(base, "some", 6, 0, 0)
    assert text.new_tokens == 6
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    ids = tokenizer("some", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        model: Any = AutoModelForCausalLM.from_pretrained(base)
        greedy = model.generate(ids, max_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(ids))
    assert text.new_text == tokenizer.decode(greedy[0, ids.shape[1] :], skip_special_tokens=True)
    # Where it ends is the generation config's to say.
    GenerationConfig(eos_token_id=[0, int(greedy[0, ids.shape[1]])]).save_pretrained(base)
    assert generate_text(base, "some", 6, 0, 0).new_tokens == 1


def test_generation_refuses_what_does_not_fit(tmp_path: Path) -> None:
    base = exported(tmp_path)
    rewrite(base, lambda tensors: {name: t for name, t in tensors.items() if "layers.1." not in name})
    with pytest.raises(WeightsError, match=r"missing: model\.layers\.1\."):
        generate_text(base, "some", 6, 0, 0)
    (base / FILE).write_bytes((base / FILE).read_bytes()[:-50])
    with pytest.raises(WeightsError, match="cut short"):
        generate_text(base, "some", 6, 0, 0)


def test_generation_with_another_architecture_is_as_strict(tmp_path: Path) -> None:
    """Exports of others may be of any that transformers knows."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    from orchestrator.data.tokens import tokenizer
    from orchestrator.spec.model import TokenizerTrainSpec

    config = GPTNeoXConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=300
    )
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.train(["some words " * 50], TokenizerTrainSpec(vocab_size=300)).save(tmp_path)
    assert generate_text(tmp_path, "some", 2, 0, 0).new_tokens == 2
    tensors: Tensors = load_file(tmp_path / FILE)
    save_file({name: value for name, value in tensors.items() if "layers.1.mlp" not in name}, tmp_path / FILE)
    with pytest.raises(WeightsError, match=r"missing: gpt_neox\.layers\.1\.mlp"):
        generate_text(tmp_path, "some", 2, 0, 0)
