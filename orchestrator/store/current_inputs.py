"""What is there now, of all that a run is trained with: installed packages, Convoy's own code, the model's files."""

import hashlib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import orchestrator
from orchestrator.atomic_files import read_json
from orchestrator.data.data_manifest import DataManifest
from orchestrator.data.sources import globs, hub
from orchestrator.data.sources.contents import read_weights, unread
from orchestrator.domain.fingerprints import DIGEST_HEX, CodePrint, FileContent, ModelPrint, settings_of
from orchestrator.json_values import JsonObject
from orchestrator.planner.model_shape import model_shape
from orchestrator.spec.job import JobSpec

PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers")
COMPUTING = ("data", "train")
"""Packages of Convoy that decide what is computed: from text to samples, and from samples to weights."""
WEIGHTS = ("config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "*.bin.index.json")


def local_path(name: str | None, job_dir: Path) -> Path | None:
    """The path that a model or tokenizer of the spec names, relative to the job file; None if it is an id of the Hub.

    A path that looks like one need not exist.
    """
    if name is None:
        return None
    path = Path(globs.absolute(name, job_dir))
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        return path
    return Path(name).absolute() if Path(name).exists() else None


def settings_now(spec: JobSpec, job_dir: Path) -> JsonObject:
    """See `settings_of`."""
    names = [name for name in (spec.model.pretrained, spec.tokenizer.pretrained) if name is not None]
    return settings_of(spec, [name for name in names if local_path(name, job_dir) is not None])


def code_now() -> CodePrint:
    """Of the driver's environment. A difference in a package's build alone (`2.13.0+cpu`) is none."""
    versions = {"convoy-train": orchestrator.__version__}
    versions |= {name: metadata.version(name).partition("+")[0] for name in PACKAGES}
    root = Path(orchestrator.__file__).parent
    modules = {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for package in COMPUTING
        for path in sorted((root / package).rglob("*.py"))
    }
    return CodePrint(versions, modules)


def model_now(spec: JobSpec, job_dir: Path, vocab_size: int, known: Sequence[FileContent] = ()) -> ModelPrint:
    """The model's own files and its shape; the commit of a model of the Hub is asked for by `pinned_model`.

    `known`: files that were there before; what has not been touched is not read. Raises DataError.
    """
    directory = local_path(spec.model.pretrained, job_dir)
    files: list[FileContent] = []
    if directory is not None and directory.is_dir():
        before = {file.name: file for file in known}
        for path in sorted({path for pattern in WEIGHTS for path in directory.glob(pattern) if path.is_file()}):
            files.append(unread(path, before.get(path.name)) or read_weights(path, path.name))
    config = read_json(directory / "config.json") if directory is not None else None
    if directory is None and spec.model.pretrained is not None:
        return ModelPrint()  # what its config says is not known here
    if directory is not None and not files:
        return ModelPrint()
    shape = model_shape({**(config or {}), **spec.model.config}, vocab_size)
    return ModelPrint(tuple(files), None, (shape.parameters, shape.layers, shape.width))


def model_commit(spec: JobSpec, job_dir: Path) -> str | None:
    """The present commit of a model of the Hub; None if it is not of the Hub, or unknown."""
    name = spec.model.pretrained
    if name is None or local_path(name, job_dir) is not None:
        return None
    return hub.commit_of_model(name, spec.model.revision)


def embedding_rows(spec: JobSpec, job_dir: Path) -> int | None:
    """Token embeddings of a pretrained model in a directory; None if it is none, or does not say."""
    directory = local_path(spec.model.pretrained, job_dir)
    rows = (read_json(directory / "config.json") or {}).get("vocab_size") if directory is not None else None
    return rows if isinstance(rows, int) else None


def data_identity(manifest: DataManifest, tokens_digest: str | None) -> str:
    """Equal for prepared data that gives the same training samples in the same order, whatever its key in the cache. If
    the digest of the tokens is unknown, the key."""
    if tokens_digest is None:
        return manifest.fingerprint
    order = (manifest.sequence_length, manifest.packing, manifest.seed, manifest.eos_id, manifest.pad_id)
    streams = [(source.weight, source.train) for source in manifest.sources]
    return hashlib.sha256(repr((tokens_digest, order, streams)).encode()).hexdigest()[:DIGEST_HEX]
