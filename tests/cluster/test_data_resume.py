"""Real processes: a preparation that is killed goes on, one that is interrupted leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.cluster

SCRIPT = """
import json, os, sys
from pathlib import Path
from orchestrator.data.executor import LocalExecutor
from orchestrator.data.prepare import prepare
from orchestrator.domain.events.event_codec import encode_body
from orchestrator.spec.job import JobSpec

def main():
    spec = JobSpec.model_validate(json.loads(Path("spec.json").read_text()))
    def say(body):
        print(json.dumps({"kind": body.kind, **encode_body(body)}), flush=True)
    prepared = prepare(spec, Path("."), Path(sys.argv[1]), LocalExecutor(int(sys.argv[2])), say)
    print(json.dumps({"kind": "done", "directory": str(prepared.directory)}), flush=True)

if __name__ == "__main__":
    main()
"""


def write_job(directory: Path, documents: int) -> None:
    with (directory / "corpus.jsonl").open("w") as file:
        for number in range(documents):
            words = " ".join(f"word{number * 7 % 1000} and{i}" for i in range(150))
            file.write(json.dumps({"text": f"document {number}: {words}"}) + "\n")
    spec: dict[str, Any] = {
        "name": "test",
        "model": {"architecture": "gpt2"},
        "tokenizer": {"train": {"vocab_size": 400, "sample_bytes": 200_000}},
        "data": {
            "sources": [{"files": ["corpus.jsonl"]}],
            "sequence_length": 64,
            "validation": {"fraction": 0.1},
        },
        "train": {"steps": 1, "global_batch": 1, "lr": 1e-3},
    }
    (directory / "spec.json").write_text(json.dumps(spec))
    (directory / "prepare_it.py").write_text(SCRIPT)


def start(directory: Path, cache: str, workers: int = 2) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "prepare_it.py", cache, str(workers)],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: "subprocess.Popen[str]") -> list[dict[str, Any]]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return [json.loads(line) for line in out.splitlines()]


def until_blocks(process: "subprocess.Popen[str]", directory: Path, cache: str, blocks: int) -> int:
    """Wait until that many blocks are in the journal; how many there are."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        journals = list((directory / cache).glob("tokens/*/journal.jsonl"))
        found = journals[0].read_text().count("\n") if journals else 0
        if found >= blocks:
            return found
        assert process.poll() is None, "it finished before it could be stopped"
        time.sleep(0.005)
    raise AssertionError("no block was finished in a minute")


def files_of(directory: Path, events: list[dict[str, Any]]) -> dict[str, bytes]:
    prepared = directory / events[-1]["directory"]
    return {str(p.relative_to(prepared)): p.read_bytes() for p in sorted(prepared.rglob("*")) if p.is_file()}


def gone(processes: list[psutil.Process], seconds: float) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not alive


def test_a_killed_preparation_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    write_job(tmp_path, 6000)
    undisturbed = files_of(tmp_path, finish(start(tmp_path, "whole", workers=1)))
    process = start(tmp_path, "killed")
    done = until_blocks(process, tmp_path, "killed", 2)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert children
    assert gone(children, 10), "worker processes outlived their parent"
    journal = next((tmp_path / "killed").glob("tokens/*/journal.jsonl"))
    kept = journal.read_text().splitlines()
    assert len(kept) >= done
    events = finish(start(tmp_path, "killed"))
    first = next(event for event in events if event.get("phase") == "tokenize")
    assert first["tokens"] >= sum(json.loads(line)["block_tokens"] for line in kept), "finished blocks were made again"
    assert journal.read_text().splitlines()[: len(kept)] == kept
    assert not any(event.get("phase") == "tokenizer" for event in events), "the tokenizer was trained again"
    assert files_of(tmp_path, events) == undisturbed


def test_ctrl_c_ends_every_process(tmp_path: Path) -> None:
    write_job(tmp_path, 6000)
    process = start(tmp_path, "cache")
    until_blocks(process, tmp_path, "cache", 1)
    everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=10)
    assert gone(everyone, 5)
    assert time.monotonic() - started < 5


def test_two_at_once_do_the_work_once(tmp_path: Path) -> None:
    write_job(tmp_path, 1500)
    pair = [start(tmp_path, "cache", workers=1) for _ in range(2)]
    events = [finish(process) for process in pair]
    cached = sorted(event["cached"] for run in events for event in run if event["kind"] == "data.ready")
    assert cached == [False, True]
    assert files_of(tmp_path, events[0]) == files_of(tmp_path, events[1])
    waited = [event for run in events for event in run if event["kind"] == "warning"]
    assert len(waited) == 1
    assert "waiting for it" in waited[0]["message"]
