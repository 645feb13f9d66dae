"""The proof of what a run consumed: its recorded steps are replayed against the data and the sample order.

For every step of the final lineage the sample ids are recomputed from the order, their tokens read from the token
files, and their digest compared with the one recorded from what was really fed. Positions must follow one another
without gap or overlap, but for the skips that the run recorded, and every sample is counted, per source and epoch.

If a run continued with other data, each part is compared with its own data, and its samples are counted separately: a
sample of one part is not recognised in another.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.samples.dataset import DIGEST_MODULUS, Samples, TokenDataset
from orchestrator.data.samples.mixture import Drawn
from orchestrator.data.samples.skipping_order import BatchOrder
from orchestrator.domain.policy.numeric import Skip
from orchestrator.domain.step_report import StepReport
from orchestrator.json_values import JsonObject

READ_AT_ONCE = 256
"""Samples in memory at a time."""
DRAWN_AT_ONCE = 1 << 16
"""Sample ids in memory at a time, of positions that nothing is read of."""


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
    """All of them are used, or skipped."""
    duplicates: int
    """Uses of a sample beyond its first."""
    skipped: int
    """Samples left out by a recorded skip."""
    missing: int
    """Samples neither used nor skipped although the run went past this epoch."""
    part: int = 0
    """Index of the part of the run, among those of `Proof.parts`."""
    before: int = 0
    """Samples whose place in the order of this part's data lies before the part begins: it never fed them."""


@dataclass(frozen=True)
class DataPart:
    """The data of a part of a run."""

    first_record: int
    """Records of steps before the first one of this part."""
    fingerprint: str
    dataset: TokenDataset | None
    """None: it is not there any more."""
    problem: str = ""
    """Why not."""


@dataclass(frozen=True)
class PartProof:
    """A part of the final lineage that was fed from the same data."""

    fingerprint: str
    first_step: int
    last_step: int
    first_position: int
    problem: str | None
    """Why nothing can be said about it; None: it was compared."""


@dataclass(frozen=True)
class Proof:
    """What the replay found. `ok`: each sample of each epoch was used exactly once, or its skip is recorded, and was
    what it should be."""

    ok: bool
    fingerprint: str
    steps: int
    """Steps of the final lineage."""
    samples: int
    tokens: int
    """Real tokens, recounted."""
    superseded: int
    """Recorded steps that a resume computed again from an earlier checkpoint; they left no trace in the model."""
    end_position: int
    """The position at which the last step ended in the order of the samples: `samples` plus `skipped_samples`."""
    skipped_samples: int
    skips: tuple[Skip, ...]
    """Those that the run has reached, in the order they were decided. They may overlap."""
    epochs: tuple[EpochUse, ...]
    mismatch: Mismatch | None
    parts: tuple[PartProof, ...] = ()
    """More than one: the run continued with other data."""

    def to_json(self) -> JsonObject:
        """A JSON object."""
        return asdict(self)


class _Failed(Exception):
    def __init__(self, step: int, what: str) -> None:
        super().__init__(what)
        self.mismatch = Mismatch(step, what)


def verify_run(
    steps: Iterable[StepReport], dataset: TokenDataset, global_batch: int, skips: Sequence[Skip] = ()
) -> Proof:
    """As `verify_parts`, of a run that had the same data from beginning to end."""
    return verify_parts(steps, [DataPart(0, dataset.manifest.fingerprint, dataset)], global_batch, skips)


def verify_parts(
    steps: Iterable[StepReport], parts: Sequence[DataPart], global_batch: int, skips: Sequence[Skip] = ()
) -> Proof:
    """Prove what the steps consumed. `steps` in the order they were recorded; a step at or before the last one goes
    back to there (a resume), and what was recorded after it is superseded. `parts` and `skips` in the order of the run.
    Steps of a part whose data no longer exists fail the proof; the others are still compared.

    A copied record is distinguished from a recomputed one by its time. Steps missing from the end cannot be seen from
    here: compare `Proof.steps` with the step the run says it reached.
    """
    lineage: list[tuple[int, StepReport]] = []
    found = _Found()
    superseded = 0
    try:
        lineage, superseded = _lineage(enumerate(steps), global_batch, skips)
    except _Failed as failure:
        found.mismatch = failure.mismatch
    end = lineage[-1][1].first_position + lineage[-1][1].samples if lineage else 0
    reached = [skip for skip in skips if skip.first < end]
    for part, reports in _by_part(lineage, parts):
        _prove_part(part, reports, global_batch, reached, found)
    if found.mismatch is None and not any(part.problem for part in found.parts):
        found.mismatch = _misused(found.epochs, lineage[-1][1].step if lineage else 0)
    if found.mismatch is None and (lost := next((part for part in found.parts if part.problem), None)):
        found.mismatch = Mismatch(lost.first_step, f"steps up to {lost.last_step} cannot be compared: {lost.problem}")
    return Proof(
        ok=found.mismatch is None,
        fingerprint=(found.parts or parts)[-1].fingerprint,
        steps=len(lineage),
        samples=found.samples,
        tokens=found.tokens,
        superseded=superseded,
        end_position=end,
        skipped_samples=found.skipped,
        skips=tuple(reached),
        epochs=tuple(found.epochs),
        mismatch=found.mismatch,
        parts=tuple(found.parts),
    )


@dataclass
class _Found:
    """What has been found so far."""

    samples: int = 0
    tokens: int = 0
    skipped: int = 0
    epochs: list[EpochUse] = field(default_factory=list)
    parts: list[PartProof] = field(default_factory=list)
    mismatch: Mismatch | None = None


def _by_part(
    lineage: Sequence[tuple[int, StepReport]], parts: Sequence[DataPart]
) -> Iterator[tuple[DataPart, list[StepReport]]]:
    """The parts that have steps in the lineage, with these. Later steps are later records."""
    for index, part in enumerate(parts):
        end = parts[index + 1].first_record if index + 1 < len(parts) else float("inf")
        reports = [report for number, report in lineage if part.first_record <= number < end]
        if reports:
            yield part, reports


def _prove_part(
    part: DataPart, reports: Sequence[StepReport], global_batch: int, skips: Sequence[Skip], found: _Found
) -> None:
    """Replay the steps of one part against its data; after a mismatch nothing is replayed any more."""
    first = reports[0].first_position if found.parts else 0
    end = reports[-1].first_position + reports[-1].samples
    index = len(found.parts)
    problem = part.problem or "their data does not exist" if part.dataset is None else None
    found.parts.append(PartProof(part.fingerprint, reports[0].step, reports[-1].step, first, problem))
    if part.dataset is None:
        found.samples += sum(report.samples for report in reports)
        return
    usage = _Usage(part.dataset)
    for start in range(0, first, DRAWN_AT_ONCE):
        usage.before(part.dataset.mixture.draw(start, min(DRAWN_AT_ONCE, first - start)))
    try:
        for report in reports if found.mismatch is None else ():
            found.tokens += _replay(report, part.dataset, usage)
            found.samples += report.samples
    except _Failed as failure:
        found.mismatch = failure.mismatch
    found.skipped += _count_skipped(part.dataset, global_batch, skips, first, end, usage)
    found.epochs += usage.table(end, index)


def final_lineage(
    steps: Iterable[StepReport], global_batch: int, skips: Sequence[Skip] = ()
) -> tuple[list[StepReport], int]:
    """The steps that made the model, and how many records were superseded. Raises _Failed at a gap, a copied record,
    or positions that do not follow one another, recorded skips aside."""
    lineage, superseded = _lineage(enumerate(steps), global_batch, skips)
    return [report for _, report in lineage], superseded


def _lineage(
    steps: Iterable[tuple[int, StepReport]], global_batch: int, skips: Sequence[Skip]
) -> tuple[list[tuple[int, StepReport]], int]:
    """See `final_lineage`; each step with the number of its record."""
    lineage: list[tuple[int, StepReport]] = []
    superseded = 0
    for number, report in steps:
        if report.step < 1:
            raise _Failed(report.step, "steps are counted from 1")
        if report.step > len(lineage) + 1:
            raise _Failed(report.step, f"step {len(lineage) + 1} is missing before it")
        replaced = lineage[report.step - 1 :]
        if any(old.step == report.step and old.time_s == report.time_s for _, old in replaced):
            raise _Failed(report.step, "recorded twice")
        superseded += len(replaced)
        lineage[report.step - 1 :] = [(number, report)]
    kept = len(_in_order([report for _, report in lineage], global_batch, skips))
    return lineage[:kept], superseded + len(lineage) - kept


def _in_order(lineage: list[StepReport], global_batch: int, skips: Sequence[Skip]) -> list[StepReport]:
    """The steps that still count. If the run was rolled back and has made no step since, those after the restored state
    do not count: they are in the order before the last skip. Raises _Failed."""
    try:
        order = BatchOrder.of(global_batch, [(skip.first, skip.count) for skip in skips])
    except ValueError as error:
        raise _Failed(0, f"a recorded skip is wrong: {error}") from error
    for report in lineage:
        expected = order.first_position(report.step)
        if report.first_position == expected and report.samples == global_batch:
            continue
        if skips and report.step > skips[-1].from_step:
            before = _in_order(lineage, global_batch, skips[:-1])
            return _in_order(before[: skips[-1].from_step], global_batch, skips)
        found = f"[{report.first_position}, {report.first_position + report.samples})"
        raise _Failed(report.step, f"fed positions {found}, not [{expected}, {expected + global_batch})")
    return lineage


def _count_skipped(
    dataset: TokenDataset, global_batch: int, skips: Sequence[Skip], first: int, end: int, usage: "_Usage"
) -> int:
    """Count the samples left out in the positions [first, end), each once however many skips name it; how many those
    are."""
    if not skips or any(skip.first % global_batch or skip.count % global_batch for skip in skips):
        return 0
    order = BatchOrder.of(global_batch, [(skip.first, skip.count) for skip in skips])
    for begin, last in order.left_out:
        for start in range(max(begin, first), min(last, end), DRAWN_AT_ONCE):
            usage.skip(dataset.mixture.draw(start, min(DRAWN_AT_ONCE, min(last, end) - start)))
    return order.skipped_before(end) - order.skipped_before(first)


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
            f"the digest of the fed samples is {report.data_digest}, expected {digest % DIGEST_MODULUS}:"
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
        self._skipped: dict[tuple[int, int], int] = {}
        self._before: dict[tuple[int, int], int] = {}

    def skip(self, drawn: Drawn) -> None:
        """Count samples that were left out."""
        self._add(self._skipped, drawn)

    def before(self, drawn: Drawn) -> None:
        """Count samples of positions before the part begins."""
        self._add(self._before, drawn)

    def _add(self, counted: dict[tuple[int, int], int], drawn: Drawn) -> None:
        pairs, counts = np.unique(np.stack([drawn.sources, drawn.epochs]), axis=1, return_counts=True)
        for source, epoch, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
            counted[source, epoch] = counted.get((source, epoch), 0) + count

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

    def table(self, positions: int, part: int) -> Iterator[EpochUse]:
        """Per source and epoch, given that the first `positions` positions of the order were used, skipped, or lie
        before the part. Epochs that lie before it as a whole are left out."""
        keys = set(self._bits) | set(self._skipped)
        for source, size in enumerate(self._mixture.sizes):
            last = max((epoch for found, epoch in keys if found == source), default=-1)
            for epoch in range(last + 1):
                bits = self._bits.get((source, epoch))
                used = int(np.bitwise_count(bits).sum()) if bits is not None else 0
                uses = self._uses.get((source, epoch), 0)
                skipped, before = (counted.get((source, epoch), 0) for counted in (self._skipped, self._before))
                if before == size:
                    continue
                accounted = used + skipped + before
                missing = size - accounted if self._mixture.must_be_complete(source, epoch, positions) else 0
                name, complete = self._names[source], accounted == size
                yield EpochUse(name, epoch, used, size, complete, uses - used, skipped, missing, part, before)


def _misused(epochs: Sequence[EpochUse], last_step: int) -> Mismatch | None:
    if not epochs:
        return Mismatch(0, "no step is recorded")
    for use in epochs:
        if use.duplicates or use.missing:
            what = f"{use.source}, epoch {use.epoch}: {use.duplicates} samples used twice, {use.missing} never"
            return Mismatch(last_step, what)
    return None
