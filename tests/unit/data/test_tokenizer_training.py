import itertools
import json
from pathlib import Path

import pytest

from orchestrator.data.tokens import tokenizer
from orchestrator.data.tokens.encode import _load
from orchestrator.data.tokens.tokenizer import EOS, MASK, PAD, spread_sample
from orchestrator.domain.errors import DataError
from orchestrator.spec.model import TokenizerTrainSpec
from tests.unit.data.corpora import sentences

pytestmark = pytest.mark.unit

SPEC = TokenizerTrainSpec(vocab_size=400)


def test_special_tokens_are_three_different_ones() -> None:
    trained = tokenizer.train(sentences(200), SPEC)
    assert (trained.eos_id, trained.pad_id, trained.mask_id) == (0, 1, 2)
    assert trained.config["eos_token"] == EOS
    assert trained.config["pad_token"] == PAD
    assert trained.config["mask_token"] == MASK
    assert trained.vocab_size <= 400
    assert trained.dtype == "uint16"


def test_every_text_comes_back(tmp_path: Path) -> None:
    loaded = _load(tokenizer.train(sentences(200), SPEC).text)
    for text in ("the convoy", " leading", "a\n\n\tb  c ", "\u00e9\u4e2d\U0001f600", "", "\x00\x7f", "<|nothing|>"):
        assert loaded.decode(loaded.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


def test_training_is_deterministic() -> None:
    assert tokenizer.train(sentences(300), SPEC) == tokenizer.train(iter(sentences(300)), SPEC)
    assert tokenizer.train(sentences(300), SPEC).text.json == tokenizer.train(sentences(300), SPEC).text.json


def test_what_was_saved_loads_the_same(tmp_path: Path) -> None:
    trained = tokenizer.train(sentences(200), SPEC)
    trained.save(tmp_path / "tok")
    loaded = tokenizer.load(tmp_path / "tok", "tok")
    assert loaded == trained
    assert loaded.text.json == trained.text.json
    assert tokenizer.load(tmp_path / "tok" / "tokenizer.json", "tok").eos_id == trained.eos_id


def test_a_tokenizer_without_a_pad_token_pads_with_its_end_token(tmp_path: Path) -> None:
    trained = tokenizer.train(sentences(200), SPEC)
    trained.save(tmp_path)
    value = json.loads((tmp_path / "tokenizer.json").read_text().replace(PAD, "<|other|>").replace(MASK, "<|third|>"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(value))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": EOS}, "tokenizer_class": "GPT2Tokenizer"})
    )
    (tmp_path / "special_tokens_map.json").unlink()
    loaded = tokenizer.load(tmp_path, "tok")
    assert loaded.pad_id == loaded.eos_id == 0
    assert loaded.mask_id is None
    assert loaded.config["pad_token"] == EOS
    assert loaded.config["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_what_is_no_tokenizer_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no tokenizer\.json"):
        tokenizer.load(tmp_path, "mine")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="is not a tokenizer"):
        tokenizer.load(tmp_path, "mine")


def test_a_sample_is_spread_over_the_corpus() -> None:
    texts = [("x" * 100, (i + 1) * 100) for i in range(1000)]
    taken = [position for (text, position), _ in zip(texts, range(1000), strict=True)]
    assert len(taken) == 1000
    chosen = list(spread_sample(((f"{i:04}" + "x" * 96, (i + 1) * 100) for i in range(1000)), 100_000, 10_000))
    numbers = [int(text[:4]) for text in chosen]
    assert 90 <= len(numbers) <= 101
    assert sum(map(len, chosen)) <= 10_000
    gaps = [b - a for a, b in itertools.pairwise(numbers)]
    assert max(gaps) <= 12
    assert numbers[-1] > 950


def test_a_sample_of_everything_is_everything() -> None:
    texts = [(text, 0) for text in sentences(50)]
    assert list(spread_sample(iter(texts), 10, 10**9)) == [text for text, _ in texts]
    assert sum(map(len, spread_sample(iter(texts), 0, 100))) == 100
