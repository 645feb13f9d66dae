"""Memory of a preparation does not grow with the corpus."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.selection import every_day

pytestmark = pytest.mark.cluster

SCRIPT = """
import json, resource, sys
from pathlib import Path
from orchestrator.data.samples.dataset import TokenDataset
from orchestrator.data.executor import LocalExecutor
from orchestrator.data.prepare import prepare
from orchestrator.spec.job import JobSpec

def main():
    name, form, packing = sys.argv[1:4]
    spec = JobSpec.model_validate({
        "name": "test", "model": {"architecture": "gpt2"}, "tokenizer": {"pretrained": "tok"},
        "data": {"sources": [{"files": [name], "format": form}], "sequence_length": 64, "packing": packing == "yes"},
        "train": {"steps": 1, "global_batch": 1, "lr": 1e-3},
    })
    manifest = prepare(spec, Path("."), Path("cache"), LocalExecutor(0), lambda body: None).manifest
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak_bytes": peak, "tokens": manifest.train_tokens}))

main()
"""

LINE = "some words of a line that has the length of lines %d\n"
SMALL_BYTES = 5_000_000
GROWTH = 4
ALLOWED_BYTES = 7_000_000
"""More than noise of the allocator, and half of what the large corpus would add if it were held."""


def write_tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))  # the fastest there is: the reading is what is measured
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(special_tokens=["<|endoftext|>", "[UNK]"])
    tokenizer.train_from_iterator([LINE % 0], trainer)
    (directory / "tok").mkdir()
    tokenizer.save(str(directory / "tok" / "tokenizer.json"))


def measure(directory: Path, name: str, form: str, packing: str) -> tuple[int, int]:
    (directory / "measure.py").write_text(SCRIPT)
    command = [sys.executable, "measure.py", name, form, packing]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    return value["peak_bytes"], value["tokens"]


@pytest.mark.parametrize(("form", "packing"), every_day([("lines", "no"), ("text", "yes")], ("text", "yes")))
def test_memory_is_bounded_however_large_the_corpus(tmp_path: Path, form: str, packing: str) -> None:
    write_tokenizer(tmp_path)
    lines = SMALL_BYTES // len(LINE)
    for name, count in (("small.txt", lines), ("large.txt", GROWTH * lines)):
        (tmp_path / name).write_text("".join(LINE % i for i in range(count)))
    small_peak, small_tokens = measure(tmp_path, "small.txt", form, packing)
    large_peak, large_tokens = measure(tmp_path, "large.txt", form, packing)
    print(f"peak {small_peak / 2**20:.1f} MiB, {large_peak / 2**20:.1f} MiB for {GROWTH}x")
    assert large_tokens > 3.5 * small_tokens
    assert large_peak < small_peak + ALLOWED_BYTES, f"{small_peak} bytes for 1x, {large_peak} for {GROWTH}x"
