"""What other libraries and the network do to data: `transformers`, `datasets`, and a hub that is not there."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.data.executor import LocalExecutor
from orchestrator.data.prepare import PreparedData, prepare
from orchestrator.domain.errors import DataError
from orchestrator.spec.job import JobSpec
from tests.cluster.hub_server import serve
from tests.requirements import SHARED
from tests.selection import every_day

pytestmark = pytest.mark.cluster

TEXTS = [f"document {i} of the hub: naïve café, {'word ' * (i % 13)}\n\n  end" for i in range(200)]


def job(source: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "name": "test",
        "model": {"architecture": "gpt2"},
        "tokenizer": fields.pop("tokenizer", {"train": {"vocab_size": 500}}),
        "data": {"sources": [source], "sequence_length": 32, **fields},
        "train": {"steps": 1, "global_batch": 1, "lr": 1e-3},
    }


def prepared(spec: dict[str, Any], directory: Path) -> PreparedData:
    valid = JobSpec.model_validate(spec)
    return prepare(valid, directory, directory / "cache", LocalExecutor(0), lambda body: None)


def tokens_of(found: PreparedData, name: str = "s0.train") -> list[int]:
    return np.fromfile(found.directory / f"{name}.tokens", dtype=found.manifest.dtype).tolist()


def write_jsonl(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"body": text, "n": i}) + "\n" for i, text in enumerate(texts)))


def test_the_tokenizer_loads_in_transformers_and_encodes_the_same(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    found = prepared(job({"files": ["a.jsonl"], "field": "body"}), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(found.directory / "tokenizer")
    manifest = found.manifest
    assert len(tokenizer) == manifest.vocab_size
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id) == (0, 1, 2)
    assert (manifest.eos_id, manifest.pad_id, manifest.mask_id) == (0, 1, 2)
    ids: list[int] = []
    for text in TEXTS:
        ids += [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert tokens_of(found) == ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "".join(TEXTS)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_dataset_directory_is_read_through_datasets(tmp_path: Path, streaming: bool) -> None:
    write_jsonl(tmp_path / "set" / "train.jsonl", TEXTS)
    write_jsonl(tmp_path / "set" / "test.jsonl", TEXTS[:5])
    write_jsonl(tmp_path / "plain.jsonl", TEXTS)
    hub = {"hub": "./set", "field": "body", "streaming": streaming}
    found = prepared(job(hub, tokenizer={"train": {"vocab_size": 300}}), tmp_path)
    plain = prepared(
        job({"files": ["plain.jsonl"], "field": "body"}, tokenizer={"train": {"vocab_size": 300}}), tmp_path
    )
    assert tokens_of(found) == tokens_of(plain)
    assert found.manifest.documents == 200
    assert found.manifest.sources[0].bytes == sum(len(text.encode()) for text in TEXTS)
    assert prepared(job(hub, tokenizer={"train": {"vocab_size": 300}}), tmp_path).cached
    with pytest.raises(DataError, match="no column 'text'; its columns are: body, n"):
        prepared(job({**hub, "field": "text"}), tmp_path)
    with pytest.raises(DataError, match="cannot be loaded"):
        prepared(job({**hub, "split": "nothing"}), tmp_path)


def test_a_slice_of_a_downloaded_dataset(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "set" / "train.jsonl", TEXTS)
    source = {"hub": "./set", "field": "body", "streaming": False, "split": "train[:10%]"}
    assert prepared(job(source), tmp_path).manifest.documents == 20


ASK = """
import json, sys
from pathlib import Path
from orchestrator.data.executor import LocalExecutor
from orchestrator.data.prepare import prepare
from orchestrator.domain.errors import DataError
from orchestrator.spec.job import JobSpec

spec = JobSpec.model_validate(json.loads(sys.argv[1]))
try:
    found = prepare(spec, Path("."), Path("cache"), LocalExecutor(0), lambda body: None)
    print(json.dumps({"manifest": found.manifest.to_json(), "cached": found.cached, "directory": str(found.directory)}))
except DataError as error:
    print(json.dumps({"message": error.message, "hint": error.hint}))
"""

NOBODY = "http://127.0.0.1:9"


def ask(directory: Path, spec: dict[str, Any], endpoint: str) -> dict[str, Any]:
    """Prepare in a process of its own, with the hub at `endpoint`; its libraries read that when imported."""
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(directory / "hf"), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", ASK, json.dumps(spec)]
    done = subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    return value


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield listener.getsockname()[1]


@pytest.mark.parametrize("silent", [False, True], ids=["refused", "silent"])
@pytest.mark.parametrize("what", ["dataset", "tokenizer"])
def test_without_the_hub_there_is_an_error_in_seconds(
    tmp_path: Path, silent_port: int, silent: bool, what: str
) -> None:
    (tmp_path / "a.txt").write_text("text")
    dataset, tokenizer = job({"hub": "someone/texts"}), job({"files": ["a.txt"]}, tokenizer={"pretrained": "gpt2"})
    started = time.monotonic()
    said = ask(
        tmp_path, dataset if what == "dataset" else tokenizer, f"http://127.0.0.1:{silent_port}" if silent else NOBODY
    )
    assert time.monotonic() - started < 20
    assert "cannot be reached" in said["message"]
    assert ("someone/texts" if what == "dataset" else "gpt2") in said["message"]
    assert "local path" in said["hint"]


@pytest.mark.parametrize("streaming", every_day([True, False], True))
def test_a_hub_dataset_and_a_run_that_resumes_without_the_hub(tmp_path: Path, streaming: bool) -> None:
    write_jsonl(tmp_path / "hub" / "datasets" / "someone" / "texts" / "train.jsonl", TEXTS)
    spec = job({"hub": "someone/texts", "field": "body", "streaming": streaming})
    with serve(tmp_path / "hub") as endpoint:
        first = ask(tmp_path, spec, endpoint)
        unknown = ask(tmp_path, job({"hub": "someone/else"}), endpoint)
    assert first["manifest"]["documents"] == 200, first
    assert "refuses the dataset 'someone/else'" in unknown["message"]
    again = ask(tmp_path, spec, NOBODY)
    assert again["cached"]
    assert again["manifest"] == first["manifest"]


def test_a_hub_tokenizer_is_downloaded_once(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    trained = prepared(job({"files": ["a.jsonl"], "field": "body"}), tmp_path)
    shutil.copytree(trained.directory / "tokenizer", tmp_path / "hub" / "models" / "someone" / "tok")
    write_jsonl(tmp_path / "hub" / "models" / "someone" / "bare" / "x.jsonl", [])
    spec = job({"files": ["a.jsonl"], "field": "body"}, tokenizer={"pretrained": "someone/tok"})
    with serve(tmp_path / "hub") as endpoint:
        first = ask(tmp_path, spec, endpoint)
        bare = ask(tmp_path, job({"files": ["a.jsonl"]}, tokenizer={"pretrained": "someone/bare"}), endpoint)
    assert first["manifest"]["vocab_size"] == trained.manifest.vocab_size, first
    assert first["manifest"]["train_tokens"] == trained.manifest.train_tokens
    assert "has no tokenizer.json" in bare["message"]
    assert ask(tmp_path, spec, NOBODY)["cached"]


HERE = Path(__file__).parents[1] / "data"
CORPORA = {
    "small": (HERE / "plays.txt", HERE / "pairs", HERE / "reviews.tsv", 5_000),
    "large": (SHARED / "shakespeare.txt", SHARED / "multi30k_train", SHARED / "sst2_train.tsv", 1_000_000),
}


@pytest.mark.parametrize(
    "size", ["small", pytest.param("large", marks=[pytest.mark.needs("corpora"), pytest.mark.soak])]
)
def test_corpora_in_their_formats(size: str, tmp_path: Path) -> None:
    prose, pairs, reviews, least_tokens = CORPORA[size]
    sources = [
        {"files": [str(prose)], "weight": 1.0},
        {"files": [f"{pairs}.*"], "format": "lines", "weight": 2.0},
        {"files": [str(reviews)], "field": "column:0", "weight": 1.0},
    ]
    spec = job({}, validation={"fraction": 0.01}, tokenizer={"train": {"vocab_size": 1000}})
    spec["data"]["sources"] = sources
    found = prepared(spec, tmp_path)
    plays, lines, rows = found.manifest.sources
    assert (plays.documents, plays.bad_records) == (1, 0)
    assert lines.documents == sum(Path(f"{pairs}.{code}").read_text().count("\n") for code in ("en", "de"))
    assert rows.records == len(reviews.read_text().strip("\n").split("\n"))
    assert rows.bad_records == 0
    assert found.manifest.train_tokens + found.manifest.validation_tokens > least_tokens
    assert tokens_of(found, "s0.train").count(found.manifest.eos_id) == 1
