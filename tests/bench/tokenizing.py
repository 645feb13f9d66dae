"""Text to token shards against `datasets.map(num_proc=2, batched=True)` with the same tokenizer and documents.

Ours is charged for everything (scanning, tokenising, writing checked shards); the peer for its `map` alone.
Memory: the whole process tree's proportional set size, for a corpus and for one four times as large.
"""

import json
import statistics
import sys
import sysconfig
import time
from pathlib import Path

from tests.bench.measure import Row, alternate, environment, median_ratio, run

ROUNDS = 3
BAR = 1.0
CORPUS_BYTES = 40_000_000
GROWTH = 4
MEMORY_BAR = 1.15

JOB = """\
name: bench-data
model: {{architecture: gpt2, config: {{n_layer: 1, n_embd: 32, n_head: 2}}}}
tokenizer: {{pretrained: {tokenizer}}}
data:
  sources: [{{files: ["{documents}"]}}]
  sequence_length: 128
train: {{steps: 1, global_batch: 1, lr: 1e-3}}
"""


def write_corpus(path: Path, size_bytes: int) -> None:
    """JSONL of the standard library's sources, repeated with a running number until it is large enough."""
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    written = number = 0
    with path.open("w") as out:
        while written < size_bytes:
            text = sources[number % len(sources)].read_text(errors="replace")
            written += out.write(json.dumps({"text": f"# {number}\n{text}"}) + "\n")
            number += 1


def train_tokenizer(path: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer

    files = [str(f) for f in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:60]]
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train(files, vocab_size=8192, special_tokens=["<|endoftext|>"])
    tokenizer.save(str(path))


def measure(scratch: Path) -> list[Row]:
    tokenizer, documents = scratch / "tokenizer.json", scratch / "documents.jsonl"
    train_tokenizer(tokenizer)
    write_corpus(documents, CORPUS_BYTES)
    peers = Path(__file__).with_name("peers")

    def ours(documents: Path = documents, watch: bool = False):
        fresh = scratch / f"ours-{time.monotonic_ns()}"
        fresh.mkdir()
        job = fresh / "job.yaml"
        job.write_text(JOB.format(tokenizer=tokenizer, documents=documents))
        command = [sys.executable, str(peers / "convoy_prepare.py"), "--job", str(job), "--cache", str(fresh)]
        return run(command, environment(), watch)

    def peer():
        cache = scratch / f"peer-{time.monotonic_ns()}"
        options = ["--tokenizer", str(tokenizer), "--documents", str(documents), "--cache", str(cache)]
        return run([sys.executable, str(peers / "datasets_map.py"), *options])

    megabytes = documents.stat().st_size / 1e6
    our_s, peer_s = alternate(ROUNDS, lambda: ours().last_json()["seconds"], lambda: peer().last_json()["seconds"])
    speedup = 1 / median_ratio(our_s, peer_s)
    figures = [f"{megabytes / statistics.median(seconds):.1f} MB/s" for seconds in (our_s, peer_s)]
    large = scratch / "large.jsonl"
    write_corpus(large, GROWTH * CORPUS_BYTES)
    small_bytes, large_bytes = (ours(path, watch=True).peak_rss_bytes for path in (documents, large))
    growth = large_bytes / small_bytes
    return [
        Row(f"tokenising {megabytes:.0f} MB, 2 processes", *figures, speedup, f">= {BAR}", speedup >= BAR),
        Row(
            f"memory of tokenising {GROWTH}x the corpus",
            f"{large_bytes / 2**20:.0f} MiB",
            f"{small_bytes / 2**20:.0f} MiB for 1x",
            growth,
            f"<= {MEMORY_BAR} (bounded)",
            growth <= MEMORY_BAR,
        ),
    ]
