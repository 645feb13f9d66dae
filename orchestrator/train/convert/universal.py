"""DeepSpeed's universal checkpoints: where their files lie, and how to read them without running what is in them.

Checked against DeepSpeed 0.19.8. `checkpoint/ds_to_universal.py` writes, under a directory named by a tag beside a
file `latest_universal` that names it:

    zero/<parameter>/fp32.pt, exp_avg.pt, exp_avg_sq.pt   whole tensors: {"param": tensor, ...}, or bare from stage 3
    zero/<parameter>/step.pt                              Adam's counter; stages 1 and 2 only
    zero/optimizer_state.pt                               hyperparameters, loss scaler; from stage 3 also the counter
    mp_rank_00_model_states.pt                            stages 1 and 2: counters, scheduler, shapes, the module
    zero_pp_rank_<rank>_mp_rank_00_model_states.pt        the same from stage 3, of each rank

All of them are pickles, and DeepSpeed unpickles them with whatever they name. Here only tensors, plain values and
the few classes DeepSpeed itself puts there are let in.
"""

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from orchestrator.checkpoint.format.checkpoint_manifest import MANIFEST
from orchestrator.checkpoint.format.intervals import Kind
from orchestrator.domain.errors import UsageError
from orchestrator.train.engine.engine import import_deepspeed

LATEST = "latest_universal"
ZERO_DIRECTORY = "zero"
OPTIMIZER_FILE = "optimizer_state.pt"
STEP_FILE = "step.pt"
TENSOR_FILES = {Kind.MASTER: "fp32.pt", Kind.EXP_AVG: "exp_avg.pt", Kind.EXP_AVG_SQ: "exp_avg_sq.pt"}
CONVOY_KEY = "convoy"
"""In the model states of what Convoy wrote: what DeepSpeed has no place for. Scripts get it as client state."""

_STAGE3_MODEL = re.compile(r"zero_pp_rank_(\d+)_mp_rank_(\d+)_model_states\.pt")
_MODEL = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_CONVERTER = "python -m deepspeed.checkpoint.ds_to_universal --inject_missing_state"


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote. `notes` are what a person must know to use it rightly."""

    path: Path
    step: int
    elements: int
    """Of all trained parameters."""
    size_bytes: int
    seconds: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class UniversalDirectory:
    """The directory of one universal checkpoint."""

    path: Path
    model_files: tuple[Path, ...]
    """Model states: one file, or from stage 3 one for each rank, in order."""

    @property
    def optimizer_file(self) -> Path:
        return self.path / ZERO_DIRECTORY / OPTIMIZER_FILE

    def folder(self, parameter: str) -> Path:
        """The directory of a parameter's files. Raises UsageError for a name that would lead elsewhere."""
        return parameter_folder(self.path / ZERO_DIRECTORY, parameter)


def parameter_folder(parent: Path, parameter: str) -> Path:
    """`parent`/`parameter`. Raises UsageError unless the name is one plain component of a path."""
    if parameter in ("", ".", "..") or "/" in parameter or "\0" in parameter:
        raise UsageError(f"parameter {parameter!r} cannot be the name of a directory, which DeepSpeed's format needs")
    return parent / parameter


def locate(source: Path) -> UniversalDirectory:
    """The universal checkpoint at `source`: its own directory, or the one above with `latest_universal`.

    Raises UsageError, saying what to do instead, for anything else: a checkpoint of Convoy, a plain checkpoint of
    DeepSpeed, one of ZeRO stage 0, one cut by tensor or pipeline parallelism.
    """
    if not source.is_dir():
        raise UsageError(f"{source} is not a directory", hint="name the directory of a universal checkpoint")
    if (source / MANIFEST).is_file():
        raise UsageError(f"{source} is a checkpoint of Convoy already", hint="--to-deepspeed converts it the other way")
    path = _tagged(source)
    if not (path / ZERO_DIRECTORY / OPTIMIZER_FILE).is_file():
        raise _not_universal(path)
    return UniversalDirectory(path, _model_files(path))


def load_file(path: Path) -> object:
    """What `torch.save` wrote to `path`; tensors are mapped, so only what is used is read. Nothing in it is run.

    Raises UsageError for a file that is missing, damaged or no such file, and for one that names classes other than
    the enumeration of stages and the loss scalers, which DeepSpeed puts there.
    """
    if not path.is_file():
        raise UsageError(f"{path} is missing", hint="the universal checkpoint is incomplete: convert it again")
    try:
        with _known_classes():
            value: object = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            return value
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"{path} cannot be read: {first}", hint="expected a file that torch.save wrote; this one looks damaged"
        ) from error


@contextmanager
def _known_classes() -> Iterator[None]:
    """Context in which torch unpickles the classes that DeepSpeed puts into its files, besides tensors."""
    import_deepspeed("cpu")
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    with safe_globals([ZeroStageEnum, LossScaler, DynamicLossScaler]):
        yield


def _refused(path: Path, error: pickle.UnpicklingError) -> UsageError:
    try:
        with _known_classes():
            unknown = get_unsafe_globals_in_checkpoint(path)
    except (pickle.UnpicklingError, OSError, RuntimeError, ValueError, KeyError):
        unknown = []
    if not unknown:
        return UsageError(
            f"{path} cannot be read: it was not written by torch.save, or it is damaged ({error.args[0][:80]})"
        )
    return UsageError(
        f"{path} is refused: unpickling it would run {', '.join(sorted(unknown))}",
        hint="expected tensors and plain values; leave such objects out of client_state when DeepSpeed saves",
    )


def _tagged(source: Path) -> Path:
    """The directory that `latest_universal` names if there is such a file, else `source`."""
    latest = source / LATEST
    if not latest.is_file():
        return source
    tag = latest.read_text(encoding="utf-8", errors="replace").strip()
    path = source / tag
    if not tag or not path.is_dir():
        raise UsageError(
            f"{latest} names {tag!r}, which is not a directory beside it", hint="name the directory itself"
        )
    return path


def _not_universal(path: Path) -> UsageError:
    plain = path
    latest = path / "latest"
    if latest.is_file():
        plain = path / latest.read_text(encoding="utf-8", errors="replace").strip()
    if any(plain.glob("*_optim_states.pt")):
        target = plain.with_name(f"{plain.name}_universal")
        return UsageError(
            f"{plain} is a plain ZeRO checkpoint of DeepSpeed, bound to its number of ranks",
            hint="make a universal one first; this unpickles the files, so only for files you trust: "
            f"{_CONVERTER} --input_folder {plain} --output_folder {target}",
        )
    if any(_MODEL.fullmatch(file.name) for file in plain.glob("*.pt")):
        return UsageError(
            f"{plain} was saved at ZeRO stage 0, or without its optimizer: DeepSpeed has no universal form of that",
            hint="save it at stage 1, 2 or 3",
        )
    return UsageError(
        f"{path} is not a universal checkpoint: it has neither {LATEST} nor {ZERO_DIRECTORY}/{OPTIMIZER_FILE}",
        hint="name the directory that ds_to_universal.py wrote, or the one above it",
    )


def _model_files(path: Path) -> tuple[Path, ...]:
    """The one file of stages 1 and 2 (Convoy writes it beside a copy for stage 3), else those of stage 3 by rank."""
    whole = sorted(file for file in path.glob("mp_rank_*.pt") if _MODEL.fullmatch(file.name))
    by_rank = {int(match[1]): file for file in path.iterdir() if (match := _STAGE3_MODEL.fullmatch(file.name))}
    parallel = [file for file in path.glob("*model_states.pt") if "mp_rank_00_model_states" not in file.name]
    if parallel or len(whole) > 1:
        raise UsageError(
            f"{path} was saved under tensor, pipeline or expert parallelism ({sorted(parallel + whole)[-1].name})",
            hint="only checkpoints of plain data parallelism, ZeRO stages 1 to 3, can be converted",
        )
    if whole:
        return (whole[0],)
    if not by_rank or sorted(by_rank) != list(range(len(by_rank))):
        raise UsageError(
            f"{path} lacks model states: expected mp_rank_00_model_states.pt, or one zero_pp_rank_N file for each rank",
            hint="the universal checkpoint is incomplete: convert it again",
        )
    return tuple(by_rank[rank] for rank in range(len(by_rank)))
