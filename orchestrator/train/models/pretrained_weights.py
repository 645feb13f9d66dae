"""Pretrained weights into a model, all of them or an error: nothing is drawn in the place of what is missing."""

import contextlib
import pickle
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Protocol, TypedDict

from orchestrator.checkpoint.format.intervals import Range
from orchestrator.domain.errors import UsageError, WeightsError
from orchestrator.train.models.architectures import ARCHITECTURES, FRESH, skeleton, without_memory
from orchestrator.weights.model_directory import Base
from orchestrator.weights.tensor_match import FLOATING, Comparison, Slot, Tensor, Wanted, compare, matches
from orchestrator.weights.wording import few, misfit

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from orchestrator.train.models.shares import Keep

_SPARE = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$", r"(^|\.)token_type_ids$", r"\.masked_bias$")
"""Constants that older releases of transformers saved with every model and newer ones compute."""


class StoredTensor(Protocol):
    """A tensor in a file, which is read when it is indexed: `safetensors`' slice, or a mapped `torch.Tensor`."""

    def __getitem__(self, index: "EllipsisType | slice[int, int, int | None]", /) -> "torch.Tensor": ...


class LoadingReport(TypedDict):
    """What transformers tells of the weights that it has loaded."""

    missing_keys: Collection[str]
    unexpected_keys: Collection[str]
    mismatched_keys: Collection[object]
    error_msgs: Collection[str]


def wanted_of(config: "PretrainedConfig") -> Wanted:
    """What the model of a config needs; built without memory. Raises UsageError if the config describes no model."""
    try:
        model = skeleton(config)
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError, KeyError, AttributeError) as error:
        raise UsageError(
            f"the config of the {config.model_type} model describes no model that can be built: {error}"
        ) from error
    architecture = ARCHITECTURES[config.model_type]
    slots = {name: Slot(tuple(tensor.shape), tensor.is_floating_point()) for name, tensor in model.state_dict().items()}
    ignored = tuple(model._keys_to_ignore_on_load_unexpected or ())
    return Wanted(
        model=type(model).__name__,
        slots=slots,
        tied=dict(model.all_tied_weights_keys),
        prefix=model.base_model_prefix,
        spare=(*_SPARE, *architecture.spare, *ignored),
        fresh=FRESH[architecture.objective],
    )


@contextlib.contextmanager
def open_tensors(base: Base) -> "Iterator[dict[str, StoredTensor]]":
    """Name to tensor, not read before it is used: slices of safetensors files, mapped tensors of torch.save's.

    Raises WeightsError for a file that cannot be opened, or would need code to be run.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, StoredTensor] = {}
    with contextlib.ExitStack() as stack:
        for file in base.files:
            path = base.directory / file
            if file in base.opaque:
                more: dict[str, StoredTensor] = dict(_torch_tensors(path))
            else:
                try:
                    opened = stack.enter_context(safe_open(path, framework="pt"))
                    more = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  # not a dict
                except (SafetensorError, OSError) as error:
                    raise WeightsError(f"{path} is damaged: {_first(error)}", _AGAIN) from error
            twice = next((name for name in more if name in found), None)
            if twice is not None:
                raise WeightsError(f"{path} holds {twice}, which another file also contains", "remove the wrong file")
            found |= more
        yield found


def declared(base: Base, tensors: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    """The tensors of a directory as its files declare them."""
    if not base.opaque:
        return dict(base.tensors)
    import torch

    names, found = _safetensors_names(), dict(base.tensors)
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor):  # of a file that only torch can look into
            found[name] = Tensor(tuple(tensor.shape), names.get(tensor.dtype, str(tensor.dtype)), base.opaque[0])
    return found


def check_fit(place: str, wanted: Wanted, found: Mapping[str, Tensor]) -> Comparison:
    """The comparison of what fits. Raises WeightsError with the names of what does not."""
    compared = compare(wanted, found)
    if not compared.fits:
        raise misfit(place, wanted, list(found), compared)
    return compared


def check_values(place: str, wanted: Wanted, compared: Comparison, tensors: Mapping[str, StoredTensor]) -> None:
    """Read every weight once. Raises WeightsError if some are NaN or infinite, if most were never written, or if two
    that the config ties differ."""
    import torch

    broken, empty, matrices = [], [], 0
    for slot, name in compared.filled.items():
        if not wanted.slots[slot].floating:
            continue
        value = tensors[name][...]
        low, high = torch.aminmax(value)
        if not (torch.isfinite(low) and torch.isfinite(high)):
            broken.append(name)
        elif value.dim() > 1:
            matrices += 1
            if low == high == 0:
                empty.append(name)
    if broken:
        raise WeightsError(
            f"the weights in {place} are damaged: NaN or infinite values in {few(broken)} "
            f"({len(broken)} of {len(compared.filled)} tensors)",
            "take an earlier save of the model: training cannot recover from these",
        )
    if len(empty) * 2 > matrices:
        what = f"only zeros in {few(empty)} ({len(empty)} of {matrices} matrices)"
        raise WeightsError(f"the weights in {place} are damaged: {what}", "their content was never written. " + _AGAIN)
    _check_ties(place, wanted, compared, tensors)


def load_weights(
    model_type: "type[PreTrainedModel]", config: "PretrainedConfig", base: Base, dtype: "torch.dtype", seed: int = 0
) -> "nn.Module":
    """A model of `model_type` with the weights of `base`, as `dtype` on the host.

    Only weights that the task draws on purpose (`FRESH`) do not come from the files; they come from `seed`. The
    process's random state is left as it was. Raises WeightsError, with names, unless all others are there and finite.
    """
    import torch
    from safetensors import SafetensorError

    place, wanted = str(base.directory), wanted_of(config)
    with open_tensors(base) as tensors:
        compared = check_fit(place, wanted, declared(base, tensors))
        state = {slot: tensors[name] for slot, name in compared.filled.items()}
        try:
            # The files are those that were checked: transformers would choose files anew, and follow adapters.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model, report = model_type.from_pretrained(
                    None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
                )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise WeightsError(f"the weights in {place} cannot be loaded: {_first(error)}", _AGAIN) from error
    model.config.name_or_path = config.name_or_path  # transformers was given none
    check_report(place, report, wanted.fresh)
    check_loaded(place, wanted, model)
    return model  # type: ignore[no-any-return]


def load_kept(config: "PretrainedConfig", base: Base, keep: "Keep", seed: int = 0) -> "nn.Module":
    """The fp32 model of a config, of which this process keeps only `keep`, read from the files tensor by tensor.

    The values are those of `load_weights`, and it raises the same errors, about this rank's share. If the task draws
    weights itself (`FRESH`), the whole model is loaded and cut afterwards.
    """
    import torch
    from safetensors import SafetensorError

    from orchestrator.train.models.shares import give_shares

    place, wanted = str(base.directory), wanted_of(config)
    if wanted.fresh:
        model = load_weights(ARCHITECTURES[config.model_type].model_type(), config, base, torch.float32, seed)
        give_shares(keep, [(parameter, keep.copy(parameter)) for parameter in model.parameters()])
        return model
    model = without_memory(config)
    model.config.dtype = torch.float32
    with open_tensors(base) as tensors:
        compared = check_fit(place, wanted, declared(base, tensors))
        try:
            _read_buffers(model, compared, tensors)
            give_shares(keep, _read_shares(place, model, compared, tensors, keep))
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise WeightsError(f"the weights in {place} cannot be loaded: {_first(error)}", _AGAIN) from error
    return model  # type: ignore[no-any-return]


def _read_buffers(model: "nn.Module", compared: Comparison, tensors: Mapping[str, StoredTensor]) -> None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for slot, name in compared.filled.items():
        if slot not in parameters:
            model.get_buffer(slot).copy_(tensors[name][...])


def _read_shares(
    place: str, model: "nn.Module", compared: Comparison, tensors: Mapping[str, StoredTensor], keep: "Keep"
) -> "list[tuple[nn.Parameter, torch.Tensor]]":
    """Raises WeightsError if values are not finite, or if parameters that share one tensor were saved with two."""
    import torch

    from orchestrator.train.engine.process_memory import return_free_memory
    from orchestrator.train.models.shares import RESIDENT_BYTES

    names: dict[nn.Parameter, list[str]] = {}
    for slot, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(slot)
    shares, broken, read_bytes = [], [], 0
    for parameter, slots in names.items():
        part = keep.part(parameter.numel())
        filled = [slot for slot in slots if slot in compared.filled]
        found = [_read_part(tensors[compared.filled[slot]], parameter.shape, part) for slot in filled]
        for slot, other in zip(filled[1:], found[1:], strict=True):
            if not torch.equal(other, found[0]):
                raise _not_tied(place, slot, slots[0])
        if not bool(torch.isfinite(found[0]).all()):
            broken.append(filled[0])
        shares.append((parameter, found[0].to(keep.device, keep.dtype)))
        read_bytes += sum(tensor.nbytes for tensor in found)
        if read_bytes > RESIDENT_BYTES:
            return_free_memory()
            read_bytes = 0
    if broken:
        raise _broken(place, broken)
    return shares


def _read_part(tensor: StoredTensor, shape: "torch.Size", part: Range) -> "torch.Tensor":
    """Elements of a stored tensor as fp32, shape [elements]; only the rows that hold them are read."""
    import torch

    if not shape or not len(part):
        flat: torch.Tensor = tensor[...].reshape(-1)
        return flat[part.start : part.end].to(torch.float32, copy=True)
    row = shape.numel() // shape[0]
    first, last = part.start // row, -(-part.end // row)
    flat = tensor[first:last].reshape(-1)[part.start - first * row : part.end - first * row]
    return flat.to(torch.float32, copy=True)


def saved_dtype(config: "PretrainedConfig", base: Base) -> "torch.dtype":
    """The type that the weights were saved in: as the config has it, else the first floating one of the files."""

    if config.dtype is not None:
        return config.dtype  # type: ignore[no-any-return]
    stored = next((tensor.dtype for tensor in base.tensors.values() if tensor.dtype in FLOATING), "F32")
    return {name: value for value, name in _safetensors_names().items()}[stored]


def check_report(place: str, report: LoadingReport, fresh: tuple[str, ...] = ()) -> None:
    """Raises WeightsError unless transformers says that it took each weight from the files, but for `fresh` ones."""
    kinds: dict[str, Collection[object]] = {
        "missing": [name for name in report["missing_keys"] if not matches(fresh, name)],
        "unexpected": report["unexpected_keys"],
        "of another shape": report["mismatched_keys"],
        "not loaded": report["error_msgs"],
    }
    parts = [f"{kind}: {few(sorted(str(item) for item in items))}" for kind, items in kinds.items() if items]
    if parts:
        raise WeightsError(f"the weights in {place} are not those of the model; {'; '.join(parts)}", _AGAIN)


def check_loaded(place: str, wanted: Wanted, model: "nn.Module") -> None:
    """Raises WeightsError if a loaded weight is not finite, or if what the config ties is not tied."""
    import torch

    broken = []
    for name, parameter in model.named_parameters():
        low, high = torch.aminmax(parameter.detach())
        if not (torch.isfinite(low) and torch.isfinite(high)):
            broken.append(name)
    if broken:
        raise _broken(place, broken)
    for target, source in wanted.tied.items():
        if model.get_parameter(target) is not model.get_parameter(source):
            raise _not_tied(place, target, source)


def _broken(place: str, names: list[str]) -> WeightsError:
    return WeightsError(
        f"the weights in {place} are damaged: NaN or infinite values in {few(names)}",
        "take an earlier save of the model: training cannot recover from these",
    )


_AGAIN = "download or copy the model again"


def _check_ties(place: str, wanted: Wanted, compared: Comparison, tensors: Mapping[str, StoredTensor]) -> None:
    import torch

    for target, source in wanted.tied.items():
        pair = [compared.filled.get(slot) for slot in (target, source)]
        if pair[0] is not None and pair[1] is not None:
            one, two = tensors[pair[0]][...], tensors[pair[1]][...]
            if not torch.equal(one, two):
                raise _not_tied(place, target, source)


def _not_tied(place: str, target: str, source: str) -> WeightsError:
    return WeightsError(
        f"config.json in {place} ties {target} to {source}, but the files hold different values for them",
        "set `tie_word_embeddings: false` in config.json if both are meant to be kept",
    )


def _torch_tensors(path: Path) -> "dict[str, torch.Tensor]":
    """The tensors of a file of torch.save, by the unpickler that makes tensors and nothing else."""
    import torch

    try:
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds Python objects besides tensors, and loading those can run code",
            "if you trust it, convert it: load it in transformers and save_pretrained() to safetensors",
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise WeightsError(f"{path} is damaged: {_first(error)}", _AGAIN) from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path} holds a {type(value).__name__}, expected a dict from names to tensors", None)
    strange = [str(name) for name, item in value.items() if not _is_plain_tensor(item)]
    if strange:
        raise WeightsError(
            f"{path} holds more than a model's tensors: {few(strange)}",
            "a training checkpoint has the model under one of these: load that into the model, and save_pretrained()",
        )
    return {str(name): item for name, item in value.items()}


def _is_plain_tensor(item: object) -> bool:
    import torch

    return isinstance(item, torch.Tensor) and item.layout is torch.strided and not item.is_quantized


def _safetensors_names() -> "dict[torch.dtype, str]":
    """Floating-point types by safetensors' names."""
    import torch

    return {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def _first(error: BaseException) -> str:
    """The first line of a library's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
