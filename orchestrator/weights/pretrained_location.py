"""The location of `model.pretrained`. Paths are relative to the job file, as those of data and tokenizers are."""

import os
from pathlib import Path

from orchestrator.domain.errors import UsageError, WeightsError
from orchestrator.spec.job import JobSpec
from orchestrator.spec.loading.load import LoadedJob, place_of_value
from orchestrator.spec.spec_errors import Problem, SpecError
from orchestrator.weights.model_directory import inspect, read_config

KEY = "model.pretrained"
KEYS = (KEY, "model.attention", "train.compile")
"""Fields that a worker can find wrong; its message begins with the field."""


def local_directory(spec: JobSpec, job_dir: Path) -> Path | None:
    """The directory that `model.pretrained` names; None if it is a hub id, or there is no pretrained model.

    Raises WeightsError if it can only be a path, and there is nothing.
    """
    name = spec.model.pretrained
    if name is None:
        return None
    path = absolute(name, job_dir)
    if path.exists():
        return path
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise WeightsError(f"there is no directory {path}", "relative paths start at the directory of the job file")
    return None


def absolute(name: str, job_dir: Path) -> Path:
    """`name` as an absolute path, `..` resolved by name and links kept."""
    return Path(os.path.normpath(os.path.join(job_dir.absolute(), Path(name).expanduser())))  # noqa: PTH118


def anchored(spec: JobSpec, job_dir: Path) -> JobSpec:
    """The spec with an absolute path for a model that lies beside the job: workers, exports and resumes stand in other
    directories."""
    name = spec.model.pretrained
    if name is None or not absolute(name, job_dir).exists():
        return spec
    model = spec.model.model_copy(update={"pretrained": str(absolute(name, job_dir))})
    return spec.model_copy(update={"model": model})


def check_files(job: LoadedJob, must_exist: bool = True) -> None:
    """Check a local pretrained model by its files and headers, in milliseconds.

    `must_exist=False`: a missing path may exist on another machine. Raises SpecError at `model.pretrained`.
    """
    try:
        directory = local_directory(job.spec, job.path.parent)
        if directory is not None:
            inspect(directory)
    except UsageError as error:
        name = job.spec.model.pretrained
        if not must_exist and name is not None and not absolute(name, job.path.parent).exists():
            return
        raise at_value(job, error) from error


def at_value(job: LoadedJob, error: UsageError) -> SpecError:
    """The error as a problem of the job: at the value of the field that its message begins with, or of
    `model.pretrained`."""
    key = next((each for each in KEYS if error.message.startswith(f"{each}: ")), KEY)
    message = error.message.removeprefix(f"{key}: ")
    return SpecError((Problem(place_of_value(job, key), f"`{key}`: {message}", error.hint),))


def check_rows(spec: JobSpec, job_dir: Path, tokens: int) -> None:
    """Raises WeightsError if a local pretrained model has fewer rows in its embedding than the tokenizer has tokens."""
    directory = local_directory(spec, job_dir)
    if directory is None:
        return
    rows = read_config(directory).get("vocab_size")
    if isinstance(rows, int) and tokens > rows:
        raise too_few_rows(str(directory), rows, tokens)


def too_few_rows(place: str, rows: int, tokens: int) -> WeightsError:
    """The tokenizer has ids that the model has no embedding for."""
    return WeightsError(
        f"the tokenizer has {tokens} tokens, but {place} has rows for {rows}",
        "use the tokenizer that belongs to the model (leave `tokenizer` out), or resize the model's embedding first",
    )
