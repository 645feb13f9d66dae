"""Prepared data that was deleted, cut off or overwritten."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.data.executor import LocalExecutor
from orchestrator.data.prepare import Kept, PreparedData, prepare
from orchestrator.data.samples.dataset import TokenDataset
from orchestrator.data.samples.integrity import file_states, problem
from orchestrator.data.tokens.tokenizer import load
from orchestrator.domain.events import DataProgress, WarningIssued
from orchestrator.spec.job import JobSpec
from tests.events import recorded
from tests.unit.data.corpora import Bench, job, sentences

pytestmark = pytest.mark.unit


@pytest.fixture(params=[True, False], ids=["packed", "unpacked"])
def spec(request: pytest.FixtureRequest, bench: Bench) -> JobSpec:
    bench.jsonl("a.jsonl", sentences(300))
    return job([{"files": ["a.jsonl"]}], packing=request.param, validation={"fraction": 0.1})


def flip(path: Path, at: int) -> None:
    """Change one byte in place, as a bad disk does; the modification time moves on."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 2)


def test_what_is_whole_is_found_so(bench: Bench, spec: JobSpec) -> None:
    prepared = bench.prepare(spec)
    fingerprint = prepared.manifest.fingerprint
    assert problem(prepared.directory, fingerprint, file_states(prepared.directory)) is None
    assert problem(prepared.directory, fingerprint, {}) is None
    copy = bench.root / "copy"
    shutil.copytree(prepared.directory, copy)
    assert problem(copy, fingerprint, file_states(prepared.directory)) is None


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda d: (d / "s0.train.tokens").unlink(), "s0.train.tokens is missing"),
        (lambda d: cut(d / "s0.train.tokens"), "bytes instead of"),
        (lambda d: flip(d / "s0.train.tokens", 200), "s0.train.tokens is damaged"),
        (lambda d: flip(d / "s0.validation.tokens", 10), "s0.validation.tokens is damaged"),
        (lambda d: flip(d / "s0.train.documents", 80), "s0.train.documents is damaged"),
        (lambda d: (d / "manifest.json").write_text("{"), "manifest.json is damaged"),
        (lambda d: (d / "manifest.json").unlink(), "holds no prepared data"),
        (lambda d: (d / "tokenizer" / "tokenizer.json").unlink(), "holds no tokenizer"),
        (shutil.rmtree, "holds no prepared data"),
    ],
)
def test_damage_is_named(bench: Bench, spec: JobSpec, damage: Callable[[Path], object], what: str) -> None:
    prepared = bench.prepare(spec)
    known = file_states(prepared.directory)
    damage(prepared.directory)
    assert what in (problem(prepared.directory, prepared.manifest.fingerprint, known) or "")


def test_samples_that_start_elsewhere_are_damage(bench: Bench) -> None:
    bench.jsonl("a.jsonl", sentences(300))
    prepared = bench.prepare(job([{"files": ["a.jsonl"]}], packing=False))
    known = file_states(prepared.directory)
    flip(prepared.directory / "s0.train.starts", 8 * 5)
    assert "samples do not start" in (problem(prepared.directory, prepared.manifest.fingerprint, known) or "")


def test_other_data_in_its_place_is_noticed(bench: Bench, spec: JobSpec) -> None:
    prepared = bench.prepare(spec)
    assert "holds other data" in (problem(prepared.directory, "another", {}) or "")


def again(bench: Bench, spec: JobSpec, before: PreparedData) -> PreparedData:
    kept = Kept(load(before.directory / "tokenizer", "own"))
    bench.events = []
    return prepare(
        spec, bench.root, bench.cache, LocalExecutor(0), lambda body: bench.events.append(recorded(body)), kept
    )


@pytest.mark.parametrize("name", ["s0.train.tokens", "s0.train.documents"])
def test_damaged_data_is_made_again_for_a_run_that_goes_on(bench: Bench, spec: JobSpec, name: str) -> None:
    before = bench.prepare(spec)
    first = TokenDataset.open(before.directory).train(0, 50).digest()
    flip(before.directory / name, 16)  # the file of the token directory too: it is the same
    found = again(bench, spec, before)
    assert not found.cached
    assert any("the cache is damaged" in fields["message"] for fields in bench.kinds(WarningIssued))
    assert TokenDataset.open(found.directory).train(0, 50).digest() == first
    assert found.tokens_digest == before.tokens_digest


def test_a_cache_cut_off_is_made_again_for_any_job(bench: Bench, spec: JobSpec) -> None:
    before = bench.prepare(spec)
    cut(before.directory / "s0.train.tokens")
    found = bench.prepare(spec)
    assert not found.cached
    assert found.manifest == before.manifest
    TokenDataset.open(found.directory)


def test_a_kept_tokenizer_is_used_on_other_text(bench: Bench, spec: JobSpec) -> None:
    before = bench.prepare(spec)
    own = load(before.directory / "tokenizer", "own")
    bench.jsonl("a.jsonl", ["zebra quagga " * 30 for _ in range(300)])
    found = again(bench, spec, before)
    assert load(found.directory / "tokenizer", "found").key == own.key
    assert not any(fields["phase"] == "tokenizer" for fields in bench.kinds(DataProgress))
    # A new job on the new text has a tokenizer of its own.
    assert load(bench.prepare(spec).directory / "tokenizer", "new").key != own.key


def test_tokens_of_the_very_tokenizer_are_not_made_again(bench: Bench, spec: JobSpec) -> None:
    before = bench.prepare(spec)
    found = again(bench, spec.model_copy(update={"train": spec.train.model_copy(update={"seed": 9})}), before)
    assert found.cached
    assert found.manifest.tokens_fingerprint == before.manifest.tokens_fingerprint
    assert found.manifest.seed == 9


def test_a_tokenizer_keeps_its_key_when_it_is_saved(bench: Bench, spec: JobSpec) -> None:
    directory = bench.prepare(spec).directory / "tokenizer"
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "auto_map": {"AutoTokenizer": "x.y"},
        "added_tokens_decoder": {"0": {"content": "<|endoftext|>"}},
        "eos_token": {"content": "<|endoftext|>", "lstrip": False},
        "bos_token": "<|endoftext|>",
        "chat_template": "{% for m in messages %}{{ m }}{% endfor %}",
        "clean_up_tokenization_spaces": True,
        "model_max_length": 1e30,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    first = load(directory, "first")
    first.save(bench.root / "second")
    second = load(bench.root / "second", "second")
    second.save(bench.root / "third")
    assert first.key == second.key == load(bench.root / "third", "third").key
