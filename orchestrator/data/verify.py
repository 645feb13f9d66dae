"""The proof of what a run consumed: its recorded steps are replayed against the data and the sample order.

For every step of the final lineage the sample ids are computed anew from the order, their tokens read from the token
files, and their digest compared with the one recorded from what was really fed. Positions must follow one another
without gap or overlap, and every sample is counted, per source and epoch.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.dataset import DIGEST_MODULUS, Samples, TokenDataset
from orchestrator.domain.report import StepReport

READ_AT_ONCE = 256
"""Samples in memory at a time."""


@dataclass(frozen=True)
class Mismatch:
    """The first thing that is not as it should be."""

    step: int
    what: str


@dataclass(frozen=True)
class EpochUse:
    """How the samples of one source were used in one of its epochs."""

    source: str
    epoch: int
    used: int
    """Different samples used."""
    of: int
    """Samples the source has."""
    complete: bool
    duplicates: int
    """Uses of a sample beyond its first."""
    missing: int
    """Samples not used although the run went past this epoch."""


@dataclass(frozen=True)
class Proof:
    """What the replay found. `ok`: each sample of each epoch was used exactly once, and was what it should be."""

    ok: bool
    fingerprint: str
    steps: int
    """Steps of the final lineage."""
    samples: int
    tokens: int
    """Real tokens, recounted."""
    superseded: int
    """Recorded steps that a resume computed again from an earlier checkpoint; they left no trace in the model."""
    epochs: tuple[EpochUse, ...]
    mismatch: Mismatch | None

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


class _Failed(Exception):
    def __init__(self, step: int, what: str) -> None:
        super().__init__(what)
        self.mismatch = Mismatch(step, what)


def verify_run(steps: Iterable[StepReport], dataset: TokenDataset, global_batch: int) -> Proof:
    """Prove what the steps consumed. `steps` in the order they were recorded; a step at or before the last one goes
    back to there (a resume), and what was recorded after it is superseded.

    A copied record is told from a recomputed one by its time. Steps missing from the end cannot be seen from here:
    compare `Proof.steps` with the step the run says it reached.
    """
    usage = _Usage(dataset)
    lineage: list[StepReport] = []
    superseded = tokens = samples = 0
    mismatch = None
    try:
        lineage, superseded = final_lineage(steps, global_batch)
        for report in lineage:
            tokens += _replay(report, dataset, usage)
            samples += report.samples
    except _Failed as failure:
        mismatch = failure.mismatch
    epochs = tuple(usage.table(samples))
    if mismatch is None:
        mismatch = _misused(epochs, lineage[-1].step if lineage else 0)
    return Proof(
        ok=mismatch is None,
        fingerprint=dataset.manifest.fingerprint,
        steps=len(lineage),
        samples=samples,
        tokens=tokens,
        superseded=superseded,
        epochs=epochs,
        mismatch=mismatch,
    )


def final_lineage(steps: Iterable[StepReport], global_batch: int) -> tuple[list[StepReport], int]:
    """The steps that made the model, and how many records were superseded. Raises _Failed at a gap, a copied record,
    or positions that do not follow one another."""
    lineage: list[StepReport] = []
    superseded = 0
    for report in steps:
        if report.step < 1:
            raise _Failed(report.step, "steps are counted from 1")
        if report.step > len(lineage) + 1:
            raise _Failed(report.step, f"step {len(lineage) + 1} is missing before it")
        replaced = lineage[report.step - 1 :]
        if any(old.step == report.step and old.time_s == report.time_s for old in replaced):
            raise _Failed(report.step, "recorded twice")
        superseded += len(replaced)
        lineage[report.step - 1 :] = [report]
    for report in lineage:
        expected = (report.step - 1) * global_batch
        if report.first_position != expected or report.samples != global_batch:
            found = f"[{report.first_position}, {report.first_position + report.samples})"
            raise _Failed(report.step, f"fed positions {found}, not [{expected}, {expected + global_batch})")
    return lineage, superseded


def _replay(report: StepReport, dataset: TokenDataset, usage: "_Usage") -> int:
    """Read the samples of one step again, count them, compare. Returns their real tokens. Raises _Failed."""
    digest = tokens = 0
    for part in _parts(dataset, report.first_position, report.samples):
        digest += part.digest()
        tokens += int(part.lengths.sum())
        usage.count(part)
    if digest % DIGEST_MODULUS != report.data_digest:
        raise _Failed(
            report.step,
            f"the samples fed have digest {report.data_digest}, those of the order {digest % DIGEST_MODULUS}:"
            " other samples or other data",
        )
    if tokens != report.tokens:
        raise _Failed(report.step, f"{report.tokens} tokens were recorded, the samples hold {tokens}")
    if report.ranks and sum(rank.samples for rank in report.ranks) != report.samples:
        raise _Failed(report.step, f"the ranks' shares add up to {sum(r.samples for r in report.ranks)} samples")
    return tokens


def _parts(dataset: TokenDataset, first: int, count: int) -> Iterator[Samples]:
    for start in range(first, first + count, READ_AT_ONCE):
        yield dataset.train(start, min(READ_AT_ONCE, first + count - start))


class _Usage:
    """Counts samples by source and epoch, a bit a sample."""

    def __init__(self, dataset: TokenDataset) -> None:
        self._mixture = dataset.mixture
        self._names = [source.name for source in dataset.manifest.sources if source.train is not None]
        self._bits: dict[tuple[int, int], NDArray[np.uint8]] = {}
        self._uses: dict[tuple[int, int], int] = {}

    def count(self, samples: Samples) -> None:
        """Count some samples."""
        offsets = self._mixture.offsets
        sources = np.searchsorted(offsets, samples.ids, side="right") - 1
        for source, epoch in sorted(set(zip(sources.tolist(), samples.epochs.tolist(), strict=True))):
            local = samples.ids[(sources == source) & (samples.epochs == epoch)] - offsets[source]
            size = self._mixture.sizes[source]
            bits = self._bits.setdefault((source, epoch), np.zeros(-(-size // 8), dtype=np.uint8))
            np.bitwise_or.at(bits, local >> 3, (1 << (local & 7)).astype(np.uint8))
            self._uses[source, epoch] = self._uses.get((source, epoch), 0) + len(local)

    def table(self, positions: int) -> Iterator[EpochUse]:
        """Per source and epoch, given that the first `positions` positions of the order were used."""
        keys = set(self._bits)
        for source, size in enumerate(self._mixture.sizes):
            last = max((epoch for found, epoch in keys if found == source), default=-1)
            for epoch in range(last + 1):
                bits = self._bits.get((source, epoch))
                used = int(np.bitwise_count(bits).sum()) if bits is not None else 0
                due = self._mixture.must_be_complete(source, epoch, positions)
                uses = self._uses.get((source, epoch), 0)
                missing = size - used if due else 0
                yield EpochUse(self._names[source], epoch, used, size, used == size, uses - used, missing)


def _misused(epochs: tuple[EpochUse, ...], last_step: int) -> Mismatch | None:
    if not epochs:
        return Mismatch(0, "no step is recorded")
    for use in epochs:
        if use.duplicates or use.missing:
            what = f"{use.source}, epoch {use.epoch}: {use.duplicates} samples used twice, {use.missing} never"
            return Mismatch(last_step, what)
    return None
