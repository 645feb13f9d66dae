import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.data.data_manifest import DataManifest
from orchestrator.data.samples.dataset import TokenDataset
from orchestrator.data.sources import blocks, readers
from orchestrator.data.tokens.encode import _load
from orchestrator.data.tokens.tokenizer import load
from orchestrator.domain.errors import DataError
from orchestrator.domain.events import DataReady, DataSkipped, WarningIssued
from tests.unit.data.corpora import Bench, job, sentences

pytestmark = pytest.mark.unit


def stream(directory: Path, manifest: DataManifest, name: str = "s0.train") -> list[int]:
    return np.fromfile(directory / f"{name}.tokens", dtype=manifest.dtype).tolist()


def encoded(directory: Path, documents: list[str]) -> list[int]:
    """What the stream has to be, made in the plainest way."""
    found = load(directory / "tokenizer", "test")
    tokenizer = _load(found.text)
    ids: list[int] = []
    for text in documents:
        ids += [*tokenizer.encode(text, add_special_tokens=False).ids, found.eos_id]
    return ids


def test_the_stream_is_every_document_with_an_end_token(bench: Bench) -> None:
    documents = sentences(300)
    bench.jsonl("a.jsonl", documents)
    prepared = bench.prepare(job([{"files": ["a.jsonl"]}]))
    manifest = prepared.manifest
    assert stream(prepared.directory, manifest) == encoded(prepared.directory, documents)
    assert manifest.train_tokens == len(stream(prepared.directory, manifest))
    assert manifest.train_samples == -(-manifest.train_tokens // 16)
    assert manifest.sources[0].records == manifest.documents == 300
    assert np.fromfile(prepared.directory / "s0.train.documents", dtype="<u8").sum() == manifest.train_tokens
    assert DataManifest.read(prepared.directory) == manifest
    assert bench.kinds(DataReady)[0]["tokens"] == manifest.train_tokens


def test_a_second_preparation_is_found_at_once(bench: Bench) -> None:
    bench.jsonl("a.jsonl", sentences(300))
    spec = job([{"files": ["a.jsonl"]}])
    first = bench.prepare(spec)
    started = time.monotonic()
    second = bench.prepare(spec)
    assert time.monotonic() - started < 0.5
    assert (first.cached, second.cached) == (False, True)
    assert second.manifest == first.manifest
    assert bench.kinds(DataReady)[0]["cached"] is True


@pytest.mark.parametrize(
    ("change", "tokens_reused"),
    [
        ({"seed": 5}, True),
        ({"sequence_length": 32}, True),
        ({"packing": False}, True),
        ({"bad_records": "error"}, True),
        ({"tokenizer": {"train": {"vocab_size": 320}}}, False),
        ({"validation": {"fraction": 0.1}}, False),
    ],
)
def test_what_can_be_reused_is(bench: Bench, change: dict[str, Any], tokens_reused: bool) -> None:
    bench.jsonl("a.jsonl", sentences(300))
    first = bench.prepare(job([{"files": ["a.jsonl"]}]))
    second = bench.prepare(job([{"files": ["a.jsonl"]}], **change))
    assert second.cached is tokens_reused
    assert (second.manifest.tokens_fingerprint == first.manifest.tokens_fingerprint) is tokens_reused


def test_changed_content_is_prepared_anew(bench: Bench) -> None:
    spec = job([{"files": ["*.jsonl"]}])
    bench.jsonl("a.jsonl", sentences(300))
    first = bench.prepare(spec)
    bench.jsonl("a.jsonl", [*sentences(299), "something else"])
    second = bench.prepare(spec)
    bench.jsonl("b.jsonl", sentences(3, seed=9))
    third = bench.prepare(spec)
    assert not second.cached
    assert not third.cached
    assert len({item.manifest.fingerprint for item in (first, second, third)}) == 3


def test_many_small_blocks_make_the_same_stream(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = sentences(300)
    bench.jsonl("a.jsonl", documents)
    monkeypatch.setattr(blocks, "BLOCK_CHARS", 500)
    prepared = bench.prepare(job([{"files": ["a.jsonl"]}], validation={"fraction": 0.2}))
    train = stream(prepared.directory, prepared.manifest)
    held = stream(prepared.directory, prepared.manifest, "s0.validation")
    eos = prepared.manifest.eos_id
    together = encoded(prepared.directory, documents)
    assert sorted(train + held) == sorted(together)
    assert train.count(eos) + held.count(eos) == 300
    assert 30 < held.count(eos) < 90


def test_a_document_in_pieces_is_one_document(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "PIECE_CHARS", 64)
    monkeypatch.setattr(blocks, "BLOCK_CHARS", 64)
    documents = [" ".join(sentences(20, seed=i)) for i in range(10)]
    bench.jsonl("a.jsonl", documents)
    prepared = bench.prepare(job([{"files": ["a.jsonl"]}]))
    tokens = stream(prepared.directory, prepared.manifest)
    assert tokens.count(prepared.manifest.eos_id) == prepared.manifest.documents == 10
    lengths = np.fromfile(prepared.directory / "s0.train.documents", dtype="<u8")
    ends = np.flatnonzero(np.array(tokens) == prepared.manifest.eos_id) + 1
    assert np.array_equal(np.cumsum(lengths), ends)
    decoded = _load(load(prepared.directory / "tokenizer", "").text).decode(tokens, skip_special_tokens=False)
    assert decoded.split("<|endoftext|>")[:-1] == documents


def test_skips_are_counted_and_told(bench: Bench) -> None:
    lines = [json.dumps({"text": text}) for text in sentences(200)]
    lines[10], lines[20], lines[30] = "{broken", json.dumps({"text": "  "}), json.dumps({"txt": "x"})
    bench.write("a.jsonl", "\n".join(lines))
    spec = job([{"files": ["a.jsonl"]}], max_bad_fraction=0.02)
    for _ in range(2):  # a cache hit tells it again
        source = bench.prepare(spec).manifest.sources[0]
        assert (source.records, source.documents, source.bad_records, source.empty_documents) == (200, 197, 2, 1)
        told = bench.kinds(DataSkipped)
        assert [(item["reason"], item["count"], item["first"]) for item in told] == [
            ("broken JSON", 1, "a.jsonl:11"),
            ("no field 'text'", 1, "a.jsonl:31"),
        ]
    with pytest.raises(DataError, match=r"2 of 200 records of a\.jsonl cannot be read"):
        bench.prepare(job([{"files": ["a.jsonl"]}], max_bad_fraction=0.001))
    with pytest.raises(DataError, match=r"a\.jsonl:11: broken JSON"):
        bench.prepare(job([{"files": ["a.jsonl"]}], bad_records="error"))


def test_bad_records_stop_a_fresh_preparation_too(bench: Bench) -> None:
    bench.write("a.jsonl", "\n".join([*(json.dumps({"text": text}) for text in sentences(50)), "{broken"]))
    with pytest.raises(DataError, match=r"a\.jsonl:51: broken JSON"):
        bench.prepare(job([{"files": ["a.jsonl"]}], bad_records="error"))
    with pytest.raises(DataError, match="1 of 51 records"):
        bench.prepare(job([{"files": ["a.jsonl"]}]))


@pytest.mark.parametrize(
    ("content", "fields", "expected"),
    [
        ("", {}, "no training text in a.jsonl (0 records"),
        ('{"text": " "}\n', {}, "1 empty, 0 unreadable"),
        ('{"text": "one document"}\n', {"validation": {"fraction": 0.01}}, "of 1 documents holds back none"),
        ('{"text": "one document"}\n', {"validation": {"sources": [{"files": ["e.txt"]}]}}, "contain no text"),
    ],
)
def test_too_little_text_is_said(bench: Bench, content: str, fields: dict[str, Any], expected: str) -> None:
    bench.write("a.jsonl", content)
    bench.write("e.txt", "")
    with pytest.raises(DataError) as caught:
        bench.prepare(job([{"files": ["a.jsonl"]}], **fields))
    assert expected in caught.value.message


def test_validation_sources_are_never_trained_on(bench: Bench) -> None:
    bench.jsonl("a.jsonl", sentences(100))
    bench.jsonl("v.jsonl", sentences(40, seed=7))
    prepared = bench.prepare(
        job([{"files": ["a.jsonl"]}], validation={"sources": [{"files": ["v.jsonl"]}], "max_samples": 5})
    )
    assert stream(prepared.directory, prepared.manifest) == encoded(prepared.directory, sentences(100))
    held = stream(prepared.directory, prepared.manifest, "s1.validation")
    assert held == encoded(prepared.directory, sentences(40, seed=7))
    assert prepared.manifest.validation_samples == 5
    assert prepared.manifest.validation_samples_total == -(-len(held) // 16)


def test_one_sample_where_the_corpus_is_shorter_than_a_sample(bench: Bench) -> None:
    bench.write("a.txt", "short")
    dataset = bench.dataset(job([{"files": ["a.txt"]}], sequence_length=1024))
    samples = dataset.train(0, 3)
    assert dataset.manifest.train_samples == 1
    assert samples.ids.tolist() == [0, 0, 0]
    assert samples.epochs.tolist() == [0, 1, 2]
    assert (samples.tokens[0, samples.lengths[0] :] == dataset.manifest.pad_id).all()


def test_a_pretrained_tokenizer_is_taken_as_it_is(bench: Bench) -> None:
    bench.jsonl("a.jsonl", sentences(300))
    trained = bench.prepare(job([{"files": ["a.jsonl"]}]))
    local = bench.root / "tok"
    (trained.directory / "tokenizer").rename(local)
    prepared = bench.prepare(job([{"files": ["a.jsonl"]}], tokenizer={"pretrained": "tok"}))
    assert prepared.manifest.vocab_size == trained.manifest.vocab_size
    assert stream(prepared.directory, prepared.manifest) == stream(trained.directory, trained.manifest)


def test_bert_needs_a_mask_token(bench: Bench) -> None:
    bench.jsonl("a.jsonl", sentences(100))
    trained = bench.prepare(job([{"files": ["a.jsonl"]}]))
    assert trained.manifest.mask_id == 2
    text = (trained.directory / "tokenizer" / "tokenizer.json").read_text().replace("<|mask|>", "<|none|>")
    bench.write("tok/tokenizer.json", text)
    with pytest.raises(DataError, match="no mask token"):
        bench.prepare(job([{"files": ["a.jsonl"]}], tokenizer={"pretrained": "tok"}, model={"architecture": "bert"}))


def test_a_damaged_cache_is_said(bench: Bench) -> None:
    bench.jsonl("a.jsonl", sentences(100))
    prepared = bench.prepare(job([{"files": ["a.jsonl"]}]))
    with (prepared.directory / "s0.train.tokens").open("ab") as file:
        file.write(b"xx")
    with pytest.raises(DataError, match="the manifest says"):
        TokenDataset.open(prepared.directory)
    (prepared.directory / "manifest.json").unlink()
    with pytest.raises(DataError, match="holds no prepared data"):
        TokenDataset.open(prepared.directory)


def test_a_killed_preparation_is_taken_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_CHARS", 500)
    bench.jsonl("a.jsonl", sentences(300))
    spec = job([{"files": ["a.jsonl"]}], validation={"fraction": 0.2})
    undisturbed = bench.prepare(spec)
    expected = {path.name: path.read_bytes() for path in undisturbed.directory.iterdir() if path.is_file()}
    tokens = bench.cache / "tokens" / undisturbed.manifest.tokens_fingerprint

    def cut(path: Path, change: Callable[[bytes], bytes]) -> None:
        data = change(path.read_bytes())
        path.unlink()  # not through the link that the prepared directory has to the same file
        path.write_bytes(data)

    # As a kill leaves it: no tokens.json, the last journal line half written, tokens beyond the journal.
    (tokens / "tokens.json").unlink()
    (tokens / "tokens.json.tmp").write_text("{")
    cut(tokens / "journal.jsonl", lambda data: data[: len(data) // 2])
    cut(tokens / "s0.train.tokens", lambda data: data + b"\1\2\3")
    (undisturbed.directory / "manifest.json").unlink()
    again = bench.prepare(spec)
    assert not again.cached
    assert {path.name: path.read_bytes() for path in again.directory.iterdir() if path.is_file()} == expected


def test_blocks_whose_tokens_are_damaged_are_made_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_CHARS", 500)
    bench.jsonl("a.jsonl", sentences(300))
    spec = job([{"files": ["a.jsonl"]}])
    first = bench.prepare(spec)
    expected = (first.directory / "s0.train.tokens").read_bytes()
    tokens = bench.cache / "tokens" / first.manifest.tokens_fingerprint
    (tokens / "tokens.json").unlink()
    (tokens / "s0.train.tokens").unlink()
    (tokens / "s0.train.tokens").write_bytes(expected[:1000] + b"\0\0\0\0" + expected[1004:])
    (first.directory / "manifest.json").unlink()
    assert (bench.prepare(spec).directory / "s0.train.tokens").read_bytes() == expected


def test_a_journal_of_other_text_is_not_believed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_CHARS", 500)
    bench.jsonl("a.jsonl", sentences(300))
    spec = job([{"files": ["a.jsonl"]}])
    first = bench.prepare(spec)
    expected = (first.directory / "s0.train.tokens").read_bytes()
    tokens = bench.cache / "tokens" / first.manifest.tokens_fingerprint
    (tokens / "tokens.json").unlink()
    (first.directory / "manifest.json").unlink()
    lines = (tokens / "journal.jsonl").read_text().splitlines(keepends=True)
    entry = json.loads(lines[5])
    lines[5] = json.dumps({**entry, "text_crc": entry["text_crc"] ^ 1}) + "\n"
    (tokens / "journal.jsonl").write_text("".join(lines))
    assert (bench.prepare(spec).directory / "s0.train.tokens").read_bytes() == expected


def test_a_cache_that_cannot_be_written_is_said(bench: Bench) -> None:
    bench.jsonl("a.jsonl", sentences(30))
    bench.write("cache", "a file, not a directory")
    with pytest.raises(DataError, match="cannot be written under") as caught:
        bench.prepare(job([{"files": ["a.jsonl"]}]))
    assert "data.cache_dir" in (caught.value.hint or "")


def test_validating_on_training_files_is_warned_of(bench: Bench) -> None:
    bench.jsonl("a.jsonl", sentences(30))
    bench.prepare(job([{"files": ["a.jsonl"]}], validation={"sources": [{"files": ["*.jsonl"]}]}))
    assert "a.jsonl is used for training and validation" in bench.kinds(WarningIssued)[0]["message"]


def test_a_source_without_text_among_others_is_warned_of(bench: Bench) -> None:
    bench.jsonl("a.jsonl", sentences(30))
    bench.write("empty.txt", "")
    dataset = bench.dataset(job([{"files": ["empty.txt"]}, {"files": ["a.jsonl"]}]))
    assert bench.kinds(WarningIssued) == [{"message": "there is no text in empty.txt"}]
    assert len(set(dataset.train(0, dataset.manifest.train_samples).ids.tolist())) == dataset.manifest.train_samples
    with pytest.raises(DataError, match=r"no training text in empty\.txt"):
        bench.prepare(job([{"files": ["empty.txt"], "weight": 1.0}, {"files": ["a.jsonl"], "weight": 1.0}]))
