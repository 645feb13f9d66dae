"""The corpus as one stream of blocks, source after source."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from orchestrator.data.sources.blocks import BadRecordRule, Block, BlockTally, SourcePlan, blocks, documents
from orchestrator.data.sources.contents import read_content
from orchestrator.data.sources.hub import read_hub
from orchestrator.data.sources.readers import FileReader, Item, TextPiece
from orchestrator.data.sources.source_scan import Source, SourceFile, dataset_files, kind_of
from orchestrator.domain.errors import DataError
from orchestrator.domain.fingerprints import FileContent, SourceContents
from orchestrator.spec.data import DataSpec


@dataclass
class SourceReading:
    """Reads one source, once. `tally` is whole when the reading is over."""

    source: Source
    plan: SourcePlan
    tally: BlockTally = field(default_factory=BlockTally)
    files: list[FileContent] = field(default_factory=list)
    """Content of the files that `blocks` has read."""
    _finished_bytes: int = 0
    _reader: FileReader | None = None

    def position_bytes(self) -> int:
        """Bytes of the source's files read so far."""
        return self._finished_bytes + (self._reader.position_bytes if self._reader else 0)

    def contents(self) -> SourceContents:
        """What `blocks` has read, once it is over."""
        return SourceContents(self.source.name, tuple(self.files), self.source.revision)

    def _items(self, keep: bool) -> Iterator[Item]:
        """`keep`: read each file a second time, while it is in the page cache, for its digest."""
        if self.source.spec.hub is not None:
            yield from read_hub(self.source)
        for file in self.source.files:
            self._reader = FileReader(file, self.source.spec.field)
            yield from self._reader
            self._reader = None
            self._finished_bytes += file.size_bytes
            if keep:
                self.files.append(_content(file))
        if self.source.directory is not None and keep:
            self.files += [read_content(each.path, each.name, each.kind) for each in dataset_files(self.source)]

    def blocks(self) -> Iterator[Block]:
        """The blocks of the source. Raises DataError if it cannot be read by the rules of the spec."""
        yield from blocks(self._items(keep=True), self.plan, self.tally, self.position_bytes)
        self.check()

    def training_pieces(self) -> Iterator[TextPiece]:
        """The text that is trained on, without the blocks."""
        for split, piece in documents(self._items(keep=False), self.plan, self.tally):
            if split == "train":
                yield piece

    def check(self) -> None:
        """Raises DataError if more records are bad than the spec allows."""
        tally = self.tally
        self.plan.rule.check(self.source.name, tally.records, tally.bad_records, tally.skipped.values())


def _content(file: SourceFile) -> FileContent:
    """Raises DataError if it is no longer what was read."""
    content = read_content(file.path, file.name, kind_of(file))
    if (content.size_bytes, content.stamp[0]) != (file.size_bytes, file.mtime_ns):
        raise DataError(
            f"{file.name} changed while it was being read ({file.path})",
            hint="wait for the program that writes it, then run again",
        )
    return content


@dataclass(frozen=True)
class Corpus:
    """All sources of a job."""

    sources: tuple[Source, ...]
    plans: tuple[SourcePlan, ...]

    @classmethod
    def of(cls, data: DataSpec, sources: tuple[Source, ...]) -> "Corpus":
        """How the spec wants these sources cut."""
        rule = BadRecordRule(data.bad_records == "error", data.max_bad_fraction)
        fraction = data.validation.fraction if data.validation else None
        plans = [
            SourcePlan(source.index, source.role, fraction if source.role == "train" else None, rule)
            for source in sources
        ]
        return cls(sources, tuple(plans))

    @property
    def total_bytes(self) -> int:
        """Bytes of all files; hub datasets count nothing."""
        return sum(source.size_bytes for source in self.sources)

    def readings(self) -> list[SourceReading]:
        """A fresh reading of every source."""
        return [SourceReading(source, plan) for source, plan in zip(self.sources, self.plans, strict=True)]

    def blocks(self, readings: list[SourceReading]) -> Iterator[Block]:
        """All blocks in order; their positions count over the whole corpus."""
        before = 0
        for reading in readings:
            for block in reading.blocks():
                yield replace(block, position_bytes=before + block.position_bytes)
            before += reading.source.size_bytes

    def training_texts(self) -> Iterator[tuple[str, int]]:
        """All training text with the position in bytes of the training sources reached."""
        before = 0
        for reading in self.readings():
            if reading.source.role == "train":
                for piece in reading.training_pieces():
                    yield piece.text, before + reading.position_bytes()
                before += reading.source.size_bytes

    @property
    def training_bytes(self) -> int:
        """Bytes of the files of the training sources."""
        return sum(source.size_bytes for source in self.sources if source.role == "train")
