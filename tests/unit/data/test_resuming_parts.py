"""A tokenizer, a base model, code, or the Hub that changed between a stop and a resume."""

import dataclasses
import json
import os
import shutil

import pytest

from orchestrator.data.sources.hub import resolve
from orchestrator.data.sources.source_scan import Source
from orchestrator.domain.fingerprints import CodePrint, ModelPrint
from orchestrator.spec.data import SourceSpec
from orchestrator.spec.model import ModelSpec
from orchestrator.store import resume_check
from orchestrator.store.fingerprint_file import read_history
from orchestrator.store.input_recording import require_same
from orchestrator.store.resume_check import pinned
from tests.unit.data.corpora import Bench
from tests.unit.data.trained import TrainedRun, edit, refused, text

pytestmark = pytest.mark.unit


@pytest.fixture
def run(bench: Bench) -> TrainedRun:
    return TrainedRun(bench)


@pytest.fixture
def with_tokenizer(bench: Bench) -> TrainedRun:
    TrainedRun(bench).tokenizer().save(bench.root / "tok")
    return TrainedRun(bench, tokenizer={"pretrained": "tok"})


def test_a_tokenizer_directory_that_was_edited_is_refused(with_tokenizer: TrainedRun) -> None:
    run, path = with_tokenizer, with_tokenizer.bench.root / "tok" / "tokenizer.json"
    assert run.examine().changes == ()
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value))  # written in another way, the same tokenizer
    assert run.examine().changes == ()
    value["model"]["merges"] = value["model"]["merges"][:-1]
    path.write_text(json.dumps(value))
    assert "tokenizer: the tokenizer tok is a different one" in refused(run)
    found, data = run.go_on(accept=True)
    assert [change.part for change in found.changes] == ["tokenizer"]
    assert found.kept.tokenizer is not None
    assert run.tokenizer().key == found.kept.tokenizer.key
    assert not data.cached


def test_another_end_token_is_another_tokenizer_and_other_data(with_tokenizer: TrainedRun) -> None:
    run, path = with_tokenizer, with_tokenizer.bench.root / "tok" / "tokenizer_config.json"
    before = run.bench.prepare(run.spec).manifest
    path.write_text(path.read_text().replace("<|endoftext|>", "<|pad|>"))
    assert "the tokenizer tok is a different one" in refused(run)
    found = run.bench.prepare(run.spec).manifest
    assert (found.eos_id != before.eos_id, found.tokens_fingerprint != before.tokens_fingerprint) == (True, True)


def test_a_tokenizer_with_more_tokens_has_no_rows_in_the_model(with_tokenizer: TrainedRun) -> None:
    run, path = with_tokenizer, with_tokenizer.bench.root / "tok" / "tokenizer.json"
    value = json.loads(path.read_text())
    value["added_tokens"].append({**value["added_tokens"][0], "id": 300, "content": "<|new|>"})
    path.write_text(json.dumps(value))
    assert "300 -> 301 tokens" in refused(run)
    assert "the model has 300 token embeddings" in refused(run, accept=True)


def test_a_tokenizer_that_is_gone_is_replaced_by_the_runs_copy(with_tokenizer: TrainedRun) -> None:
    run = with_tokenizer
    shutil.rmtree(run.bench.root / "tok")
    found = run.examine()
    assert (found.changes, found.prepared) == ((), run.prepared)
    assert "the tokenizer tok is gone" in found.warnings[0]
    shutil.rmtree(run.bench.cache)
    _, data = run.go_on()
    require_same(data, found.history[-1].data, accepted=False)


@pytest.fixture
def with_base(bench: Bench) -> TrainedRun:
    TrainedRun(bench).tokenizer().save(bench.root / "base")
    config = {"model_type": "gpt2", "vocab_size": 300, "n_layer": 2, "n_embd": 32, "n_head": 2}
    bench.write("base/config.json", json.dumps(config))
    bench.write("base/model.safetensors", os.urandom(4096))
    return TrainedRun(bench, model={"pretrained": "base"}, tokenizer={})


def test_a_base_model_that_was_changed_is_refused(with_base: TrainedRun) -> None:
    run, base = with_base, with_base.bench.root / "base"
    assert run.examine().changes == ()
    os.utime(base / "model.safetensors", (1, 1))
    assert run.examine().changes == ()
    (base / "model.safetensors").write_bytes(os.urandom(4096))
    assert "model: model.safetensors in base was edited or replaced" in refused(run)
    _, data = run.go_on(accept=True)
    assert data.cached
    assert run.examine().changes == ()
    edit(base / "config.json", '"n_layer": 2', '"n_layer": 3')
    assert "config.json in base was edited or replaced" in refused(run)
    assert "the weights in the checkpoints have another shape" in refused(run, accept=True)
    shutil.rmtree(base)
    assert "the model directory base is gone" in refused(run, accept=True)


def test_code_that_changed_is_refused(run: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    now = resume_check.code_now()
    assert set(now.versions) == {"convoy-train", "torch", "deepspeed", "transformers", "tokenizers"}
    assert {"train/step_loop.py", "data/samples/order.py"} <= set(now.modules)
    other = CodePrint({**now.versions, "torch": "9.9"}, now.modules)
    monkeypatch.setattr(resume_check, "code_now", lambda: other)
    assert f"code: torch {now.versions['torch']} is now 9.9" in refused(run)
    found = run.examine(accept=True)
    assert (found.prepared, found.new_data) == (run.prepared, False)
    text(run, 0).unlink()
    message = refused(run)
    assert f"the data and code of run {run.layout.run_id} have changed" in message


def test_what_comes_from_the_hub_stays_at_its_commit(run: TrainedRun) -> None:
    first, (entry,) = ModelPrint(revision="abc"), read_history(run.layout)
    settings = {**entry.settings, "model.pretrained": "some/model", "model.revision": None}
    history = [dataclasses.replace(entry, settings=settings, model=first)]
    spec = run.spec.model_copy(update={"model": ModelSpec(pretrained="some/model")})
    assert pinned(spec, history).model.revision == "abc"
    assert pinned(spec, ()) == spec
    named = run.spec.model_copy(update={"model": ModelSpec(pretrained="some/model", revision="v2")})
    assert pinned(named, history) == named
    source = Source(0, "train", SourceSpec(hub="some/data"), ())
    assert resolve(source, run.bench.root, "def").revision == "def"  # the hub is not asked
