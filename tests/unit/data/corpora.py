"""Small corpora and the specs that read them."""

import json
import random
from pathlib import Path
from typing import Any

from orchestrator.data.executor import LocalExecutor
from orchestrator.data.prepare import PreparedData, prepare
from orchestrator.data.samples.dataset import TokenDataset
from orchestrator.domain.events import EventBody
from orchestrator.spec.job import JobSpec
from tests.events import recorded

WORDS = (
    "the",
    "convoy",
    "goes",
    "on",
    "when",
    "a",
    "truck",
    "is",
    "lost",
    "and",
    "every",
    "parcel",
    "takes",
    "another",
)

Recorded = list[tuple[type[EventBody], dict[str, Any]]]


def sentences(count: int, seed: int = 0) -> list[str]:
    """Documents of 3 to 40 words, the same for the same seed."""
    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 40))) for _ in range(count)]


def job(sources: list[dict[str, Any]], **fields: Any) -> JobSpec:
    """A spec over some sources; `fields` go to `data`, except `seed`, `tokenizer` and `model`."""
    return JobSpec.model_validate(
        {
            "name": "test",
            "model": fields.pop("model", {"architecture": "gpt2"}),
            "tokenizer": fields.pop("tokenizer", {"train": {"vocab_size": 300}}),
            "train": {"steps": 1, "global_batch": 4, "lr": 1e-3, "seed": fields.pop("seed", 0)},
            "data": {"sources": sources, "sequence_length": 16, **fields},
        }
    )


class Bench:
    """A directory with a corpus, and a cache beside it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cache = root / "cache"
        self.events: Recorded = []

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def jsonl(self, name: str, texts: list[str], field: str = "text") -> Path:
        return self.write(name, "".join(json.dumps({field: text}) + "\n" for text in texts))

    def prepare(self, spec: JobSpec) -> PreparedData:
        self.events = []
        return prepare(spec, self.root, self.cache, LocalExecutor(0), lambda body: self.events.append(recorded(body)))

    def dataset(self, spec: JobSpec) -> TokenDataset:
        return TokenDataset.open(self.prepare(spec).directory)

    def kinds(self, kind: type[EventBody]) -> list[dict[str, Any]]:
        return [fields for found, fields in self.events if found is kind]
