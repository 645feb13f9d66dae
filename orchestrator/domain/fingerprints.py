"""What a run is trained with, and how that differs from what is there now. Pure: values in, changes out.

Data is compared by content: the digests of the files of each source in the order in which they are read. Names and
times do not count. Everything else is compared by digest or by value.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from orchestrator.json_values import JsonFields, JsonObject
from orchestrator.spec.job import JobSpec

Part = Literal["data", "tokenizer", "model", "code"]
PARTS: tuple[Part, ...] = ("data", "tokenizer", "model", "code")

DIGEST_HEX = 32
"""Hexadecimal digits that are kept of the SHA-256 of a content."""
NAMES_SHOWN = 5
"""Names of files in one message; the others are counted."""
CHANGES_SHOWN = 12
"""Changes in one message; the others are counted."""

Stamp = tuple[int, int, int]
"""Modification time and status change time in nanoseconds since 1970, and inode."""


@dataclass(frozen=True)
class FileContent:
    """A file and its content. Same size and same stamp: the content is taken to be the same and is not read. The
    status change time is set by the kernel, so a file that was replaced or edited never keeps its stamp."""

    name: str
    size_bytes: int
    digest: str
    """First `DIGEST_HEX` hexadecimal digits of the SHA-256 of the content."""
    kind: str
    """How a source file is read: its format, with `.gz` if it is compressed. Empty for other files."""
    stamp: Stamp
    sample: str = ""
    """The same of pieces spread over the content."""

    @property
    def content(self) -> tuple[str, str]:
        """Equal for files that give the same documents."""
        return self.digest, self.kind


@dataclass(frozen=True)
class SourceContents:
    """The files of one data source, in the order in which they are read."""

    name: str
    """As in the spec."""
    files: tuple[FileContent, ...]
    revision: str | None = None
    """Commit of a dataset of the Hub."""


@dataclass(frozen=True)
class TokenizerPrint:
    """A tokenizer."""

    digest: str
    vocab_size: int


@dataclass(frozen=True)
class ModelPrint:
    """The model, as far as it is not in the settings."""

    files: tuple[FileContent, ...] = ()
    """Of a pretrained model in a directory: its config and its weights."""
    revision: str | None = None
    """Commit of a pretrained model of the Hub, to which the run is pinned; None: not known."""
    shape: tuple[int, ...] = ()
    """Parameters, layers and width, as the planner counts them: if they change, old weights do not fit."""


@dataclass(frozen=True)
class CodePrint:
    """The programs that train."""

    versions: Mapping[str, str] = field(default_factory=dict)
    """Distribution to public version; the build (`+cpu`) does not count."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """Convoy's own modules that decide what is computed: path to digest."""


@dataclass(frozen=True)
class Change:
    """One difference between what a run was trained with and what is there now."""

    part: Part
    what: str
    """For people."""
    blocked: str | None = None
    """Why a run cannot continue with the change even if it is accepted; None: it can."""

    def to_json(self) -> dict[str, str]:
        """For events and files."""
        return {"part": self.part, "what": self.what}

    def __str__(self) -> str:
        return f"{self.part}: {self.what}"


def compare_sources(
    before: Sequence[SourceContents], now: Sequence[SourceContents], grown: Collection[str] = ()
) -> tuple[list[Change], list[str]]:
    """The changes of the data, and the names of sources that lost all their files.

    A source without any file is not a change by itself: a volume that is not mounted, a download that was cleaned up.
    The prepared data stands in for it. `grown`: names of files that begin with all that they had before. If the
    number of sources differs the settings say so, and the sources that both have are compared.
    """
    changes: list[Change] = []
    gone: list[str] = []
    for old, new in zip(before, now, strict=False):
        if old.files and not new.files:
            gone.append(old.name)
        elif [file.content for file in old.files] != [file.content for file in new.files]:
            changes += [Change("data", what) for what in _file_changes(old, new, grown)]
    return changes, gone


def _file_changes(old: SourceContents, new: SourceContents, grown: Collection[str]) -> list[str]:
    before = {file.name: file for file in old.files}
    after = {file.name: file for file in new.files}
    both = [name for name in after if name in before]
    removed, added = [name for name in before if name not in after], [name for name in after if name not in before]
    renamed = _renamed([before[name] for name in removed], [after[name] for name in added])
    removed = [name for name in removed if name not in renamed]
    added = [name for name in added if name not in renamed.values()]
    edited = [name for name in both if before[name].digest != after[name].digest]
    appended = [name for name in edited if name in grown]
    edited = [name for name in edited if name not in grown]
    other_kind = [name for name in both if before[name].kind != after[name].kind and name not in (*edited, *appended)]
    found = [
        _about(added, "was added to", "were added to", new.name),
        _about(removed, "was removed from", "were removed from", old.name),
        _about([_sizes(before[n], after[n]) for n in edited], "was edited in", "were edited in", new.name),
        _about([_sizes(before[n], after[n]) for n in appended], "has more text at its end in",
               "have more text at their ends in", new.name),
        _about([f"{a} -> {b}" for a, b in renamed.items()], "was renamed in", "were renamed in", new.name),
        _about(other_kind, "is read in another format in", "are read in another format in", new.name),
    ]  # fmt: skip
    return [what for what in found if what] or [f"the files of {new.name} are read in another order"]


def _renamed(removed: Sequence[FileContent], added: Sequence[FileContent]) -> dict[str, str]:
    """Old name to new name, for files that are there under another name."""
    by_content: dict[tuple[str, str], list[str]] = {}
    for file in added:
        by_content.setdefault(file.content, []).append(file.name)
    pairs = {}
    for file in removed:
        names = by_content.get(file.content)
        if names:
            pairs[file.name] = names.pop(0)
    return pairs


def _about(names: Sequence[str], one: str, many: str, source: str) -> str:
    """`2 files were added to texts/*.txt: a.txt, b.txt`; empty if there are none."""
    if not names:
        return ""
    return (
        f"{len(names)} file{'s' if len(names) > 1 else ''} {many if len(names) > 1 else one} {source}: {listed(names)}"
    )


def _sizes(before: FileContent, after: FileContent) -> str:
    if before.size_bytes == after.size_bytes:
        return f"{after.name} (still {after.size_bytes:,} bytes)"
    return f"{after.name} ({before.size_bytes:,} -> {after.size_bytes:,} bytes)"


def listed(names: Sequence[str]) -> str:
    """`a, b, c, d, e and 7 more`, without characters that a terminal would act on."""
    more = len(names) - NAMES_SHOWN
    shown = "".join(char if char.isprintable() else "\ufffd" for char in ", ".join(names[:NAMES_SHOWN]))
    return shown + (f" and {more:,} more" if more > 0 else "")


def compare_tokenizers(
    before: TokenizerPrint, now: TokenizerPrint, name: str, rows: int | None, own_vocabulary: bool
) -> list[Change]:
    """The change of a pretrained tokenizer `name`. `rows`: token embeddings of a pretrained model, None: not known.
    `own_vocabulary`: the model was built from scratch with as many rows as the tokenizer had tokens."""
    if before.digest == now.digest:
        return []
    what, blocked = f"the tokenizer {name} is a different one", None
    if before.vocab_size != now.vocab_size:
        what += f": {before.vocab_size:,} -> {now.vocab_size:,} tokens"
        if own_vocabulary:
            blocked = f"the model has {before.vocab_size:,} token embeddings"
    if rows is not None and now.vocab_size > rows:
        blocked = f"the model has {rows:,} token embeddings"
    return [Change("tokenizer", what, blocked)]


def compare_models(before: ModelPrint, now: ModelPrint, name: str) -> list[Change]:
    """The changes of the model `name`, settings apart."""
    found: list[str] = []
    old, new = {file.name: file for file in before.files}, {file.name: file for file in now.files}
    if old and not new:
        reason = "its config is read at every start; put the directory back"
        return [Change("model", f"the model directory {name} is gone, or no longer contains a model", reason)]
    edited = [key for key in new if key in old and old[key].digest != new[key].digest]
    for names, verb in (
        (edited, "edited or replaced"),
        ([key for key in new if key not in old], "added"),
        ([key for key in old if key not in new], "removed"),
    ):
        if names:
            found.append(f"{listed(names)} in {name} {'were' if len(names) > 1 else 'was'} {verb}")
    blocked = None
    if before.shape and now.shape and before.shape != now.shape:
        blocked = "the weights in the checkpoints have another shape"
        if not found:
            found.append("the model has another number of parameters or layers, or another width")
    return [Change("model", what, blocked) for what in found]


def compare_code(before: CodePrint, now: CodePrint) -> list[Change]:
    """The changes of the installed packages and of Convoy's own code."""
    changes = [
        Change("code", f"{name} {version} is now {now.versions[name]}")
        for name, version in before.versions.items()
        if name in now.versions and now.versions[name] != version
    ]
    if before.modules and now.modules and not any(change.what.startswith("convoy-train ") for change in changes):
        names = sorted({*before.modules, *now.modules})
        other = [name for name in names if before.modules.get(name) != now.modules.get(name)]
        if other:
            changes.append(Change("code", f"Convoy's own code differs at the same version: {listed(other)}"))
    return changes


KEPT_SETTINGS: dict[str, str] = {
    "task": "the weights were trained for another task",
    "model.kind": "the checkpoints hold the weights of another model",
    "model.architecture": "the checkpoints hold the weights of another architecture",
    "tokenizer.kind": "a run keeps its tokenizer: with a different one, ids would mean other tokens",
    "tokenizer.train": "the tokenizer of a run is never trained again: ids would mean other tokens",
    "train.global_batch": "steps are counted in global batches: positions in the data would not follow one another",
}
"""Settings that must not change within a run, and why. A name also stands for all names that begin with it and a
dot."""

LEARNED_POSITIONS = {"gpt2": "n_positions", "gpt_neo": "max_position_embeddings", "bert": "max_position_embeddings"}
"""Architectures with a weight for each position, and the config field that says how many. Its default is the sequence
length."""


def settings_of(spec: JobSpec, local: Collection[str]) -> JsonObject:
    """The settings that decide what the ids, the samples and the weights mean, by dotted name. Not those whose effect
    is compared itself (which files a pattern finds, what a directory holds), nor those that may change within a run:
    learning rate, steps, workers, ZeRO stage, intervals. `local`: names of models and tokenizers that are paths of this
    machine, not ids of the Hub."""
    data, model, tokenizer = spec.data, spec.model, spec.tokenizer
    found: JsonObject = {
        "task": spec.task,
        "model.kind": "pretrained" if model.pretrained is not None else "from scratch",
        "model.config": dict(model.config),
        "data.sequence_length": data.sequence_length,
        "data.packing": data.packing,
        "data.sources": len(data.sources),
        "train.seed": spec.train.seed,
        "train.global_batch": spec.train.global_batch,
        "train.mlm_probability": spec.train.mlm_probability,
    }
    if model.pretrained is None:
        found["model.architecture"] = model.architecture
    elif model.pretrained not in local:
        found |= {"model.pretrained": model.pretrained, "model.revision": model.revision}
    if tokenizer.pretrained is not None and tokenizer.pretrained not in local:
        found["tokenizer.pretrained"] = tokenizer.pretrained
    if tokenizer.train is not None:
        found |= {f"tokenizer.train.{key}": value for key, value in tokenizer.train.model_dump(mode="json").items()}
    found["tokenizer.kind"] = "trained" if tokenizer.train is not None else "pretrained"
    for place, sources in (
        ("data.sources", data.sources),
        ("data.validation.sources", data.validation.sources or [] if data.validation else []),
    ):
        for index, source in enumerate(sources):
            kept = source.model_dump(mode="json", include={"field", "weight", "hub", "config", "split"})
            found |= {f"{place}[{index}].{key}": value for key, value in kept.items()}
    held = data.validation
    found["data.validation.fraction"] = held.fraction if held else None
    found["data.validation.sources"] = len(held.sources or []) if held else 0
    found["data.validation.max_samples"] = held.max_samples if held else None
    return found


def kept_settings(spec: JobSpec) -> dict[str, str]:
    """More settings that must not change within this job's run, and why."""
    field = LEARNED_POSITIONS.get(spec.model.architecture or "")
    if field is None or field in spec.model.config:
        return {}
    return {"data.sequence_length": "the model has one embedding for each position of the old length"}


def compare_settings(before: JsonFields, now: JsonFields, kept: Mapping[str, str]) -> list[Change]:
    """The changes of the settings. One that a side does not know is not compared: it is from another version, or
    belongs to a part that no longer exists, which another setting shows. `kept`: see `kept_settings`."""
    reasons = {**KEPT_SETTINGS, **kept}
    changes = []
    for name in before:
        if name in now and before[name] != now[name]:
            blocked = next((why for key, why in reasons.items() if name == key or name.startswith(key + ".")), None)
            changes.append(Change(_part_of(name), f"{name}: {_value(before[name])} -> {_value(now[name])}", blocked))
    return changes


def _part_of(setting: str) -> Part:
    head = setting.partition(".")[0]
    return "tokenizer" if head == "tokenizer" else "model" if head in ("model", "task") else "data"


def _value(value: object) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 120 else text[:117] + "..."


def told(changes: Sequence[Change]) -> str:
    """One line each, at most `CHANGES_SHOWN`: first those that cannot be accepted, then in the order of `PARTS`."""
    ordered = sorted(changes, key=lambda change: (change.blocked is None, PARTS.index(change.part)))
    lines = [f"  {change}{_why(change)}" for change in ordered[:CHANGES_SHOWN]]
    if len(ordered) > CHANGES_SHOWN:
        lines.append(f"  and {len(ordered) - CHANGES_SHOWN} more changes")
    return "\n".join(lines)


def _why(change: Change) -> str:
    return "" if change.blocked is None else f" (cannot be accepted: {change.blocked})"
