"""Exports load in transformers as they are: every tensor, the same logits, for every architecture."""

from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.domain.errors import CheckpointError, DataError, UsageError
from orchestrator.train.convert.export import Precision, export_model, exported_step
from orchestrator.train.convert.generate import generate, generate_text
from tests.selection import every_day
from tests.unit.checkpoint.written import flip_byte
from tests.unit.train.exportable import CONFIGS, TEXT, checkpoint, job, prepared_data

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_data(tmp_path_factory.mktemp("data"))


def load(path: Path) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    masked = AutoConfig.from_pretrained(path).architectures[0].endswith("ForMaskedLM")
    auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    model, report = auto.from_pretrained(path, output_loading_info=True, local_files_only=True)
    return model.eval(), report


@pytest.mark.parametrize("architecture", CONFIGS)
def test_every_architecture_loads_whole_with_the_same_logits(architecture: str, data_dir: Path, tmp_path: Path) -> None:
    spec = job(architecture)
    model, saved = checkpoint(spec, data_dir, tmp_path)
    exported = export_model(saved, spec, data_dir, tmp_path / "export")
    loaded, report = load(tmp_path / "export")
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    assert exported.parameters == sum(p.numel() for p in model.parameters())
    assert exported.step == exported_step(tmp_path / "export") == 7
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("architecture", every_day(["gpt2", "llama", "rwkv", "mamba"], "gpt2"))
def test_it_generates_the_same_text_for_the_same_seed(architecture: str, data_dir: Path, tmp_path: Path) -> None:
    spec = job(architecture)
    _, saved = checkpoint(spec, data_dir, tmp_path)
    export_model(saved, spec, data_dir, tmp_path / "export")
    before = torch.get_rng_state()
    first = generate_text(tmp_path / "export", "def add", 8, 0.9, seed=3)
    assert first == generate_text(tmp_path / "export", "def add", 8, 0.9, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert first.text.startswith("def add")
    assert first.text == "def add" + first.new_text
    assert 1 <= first.new_tokens <= 8
    assert len({generate(tmp_path / "export", "def add", 8, 0.9, seed=seed) for seed in range(4)}) > 1
    greedy = {generate(tmp_path / "export", "def add", 8, 0, seed=seed) for seed in range(2)}
    assert len(greedy) == 1
    assert generate_text(tmp_path / "export", "", 4, 1.0, seed=0).prompt_tokens == 0


def test_a_prompt_longer_than_the_model_keeps_its_end(data_dir: Path, tmp_path: Path) -> None:
    spec = job("gpt2")
    _, saved = checkpoint(spec, data_dir, tmp_path)
    export_model(saved, spec, data_dir, tmp_path / "export")
    made = generate_text(tmp_path / "export", TEXT * 9, 8, 0, seed=0)
    assert made.prompt_tokens == 32 - 8
    assert made.text.startswith(TEXT * 9)
    assert generate_text(tmp_path / "export", TEXT, 1000, 0, seed=0).new_tokens <= 31


def test_a_masked_model_fills_blanks(data_dir: Path, tmp_path: Path) -> None:
    spec = job("bert")
    _, saved = checkpoint(spec, data_dir, tmp_path)
    export_model(saved, spec, data_dir, tmp_path / "export")
    made = generate_text(tmp_path / "export", "def [MASK](a, <|mask|>):", 8, 0, seed=0)
    assert made.new_tokens == 2
    assert "MASK" not in made.text
    assert "mask" not in made.text
    assert made.text.startswith("def ")
    with pytest.raises(UsageError, match="fills blanks"):
        generate(tmp_path / "export", "def add", 8, 0, seed=0)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_is_the_rounded_weights(dtype: Precision, data_dir: Path, tmp_path: Path) -> None:
    spec = job("qwen2")
    model, saved = checkpoint(spec, data_dir, tmp_path)
    full = export_model(saved, spec, data_dir, tmp_path / "full")
    half = export_model(saved, spec, data_dir, tmp_path / "half", dtype=dtype)
    assert half.size_bytes * 2 == full.size_bytes
    loaded, _ = load(tmp_path / "half")
    wanted = torch.bfloat16 if dtype == "bf16" else torch.float16
    for (name, ours), theirs in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert theirs.dtype is wanted
        assert torch.equal(ours.to(wanted), theirs), name
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_large_models_are_written_in_several_files(data_dir: Path, tmp_path: Path) -> None:
    spec = job("llama")
    model, saved = checkpoint(spec, data_dir, tmp_path)
    export_model(saved, spec, data_dir, tmp_path / "export", max_file_bytes=20_000)
    files = sorted((tmp_path / "export").glob("model-*.safetensors"))
    assert len(files) > 2
    assert all(file.stat().st_size < 24_000 for file in files)
    loaded, report = load(tmp_path / "export")
    assert not report["missing_keys"]
    for ours, theirs in zip(model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_nothing_is_overwritten_by_accident(data_dir: Path, tmp_path: Path) -> None:
    spec = job("gpt2")
    _, saved = checkpoint(spec, data_dir, tmp_path)
    dest = tmp_path / "export"
    dest.mkdir()
    export_model(saved, spec, data_dir, dest)  # empty is fine
    with pytest.raises(UsageError, match="is not empty"):
        export_model(saved, spec, data_dir, dest)
    export_model(saved, spec, data_dir, dest, dtype="bf16", force=True)
    assert "bfloat16" in (dest / "config.json").read_text()
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not replaced"):
        export_model(saved, spec, data_dir, precious, force=True)
    assert (precious / "thesis.txt").read_text() == "years of work"
    with pytest.raises(UsageError, match="is a file"):
        export_model(saved, spec, data_dir, precious / "thesis.txt")


def test_a_failed_export_leaves_nothing(data_dir: Path, tmp_path: Path) -> None:
    spec = job("gpt2")
    _, saved = checkpoint(spec, data_dir, tmp_path)
    with pytest.raises(CheckpointError, match=r"wte\.weight: saved \(\d+, 16\), expected \(\d+, 18\)"):
        export_model(saved, job("gpt2", n_embd=18), data_dir, tmp_path / "export")
    flip_byte(saved / "shard-00001.bin", 100)
    with pytest.raises(CheckpointError, match=r"shard-00001\.bin is corrupt"):
        export_model(saved, spec, data_dir, tmp_path / "export")
    with pytest.raises(DataError):
        export_model(saved, spec, tmp_path / "gone", tmp_path / "export")
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000007"]


def test_what_cannot_be_generated_says_why(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no model"):
        generate(tmp_path, "x", 1, 0, 0)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="0 tokens"):
        generate(tmp_path, "x", 0, 0, 0)
    with pytest.raises(UsageError, match="temperature of -1"):
        generate(tmp_path, "x", 1, -1, 0)
