"""A directory with a pretrained model: its config, the files its weights are in, and what they declare.

The order of preference is that of transformers: `model.safetensors`, its index, `pytorch_model.bin`, its index. Nothing
is unpickled here, and no library is loaded: the command line and the driver call it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from orchestrator.domain.errors import WeightsError
from orchestrator.json_values import JsonFields
from orchestrator.spec.model import Architecture
from orchestrator.weights.name_prefixes import known_wrapper
from orchestrator.weights.safetensors_header import (
    AGAIN_HINT,
    GGUF_HINT,
    Damaged,
    check_torch_file,
    read_safetensors,
    read_text_json,
)
from orchestrator.weights.tensor_match import Tensor
from orchestrator.weights.wording import few, wrapped

CONFIG = "config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH_SINGLE, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
CANDIDATES = (SINGLE, INDEX, TORCH_SINGLE, TORCH_INDEX)

_SHARD = re.compile(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)")
_FOREIGN: tuple[tuple[str, str, str], ...] = (
    (r".*\.gguf", "GGUF files", GGUF_HINT),
    (r"(adapter_model\..*|adapter_config\.json)", "a PEFT adapter", "merge it into its base model: "
     "`PeftModel.from_pretrained(base, DIR).merge_and_unload().save_pretrained(NEW)`, and give that directory"),
    (r"(consolidated.*|params\.json)", "weights in Meta's or Mistral's own format",
     "convert them with transformers' conversion script, or take the Hugging Face version of the model"),
    (r"tf_model\.h5", "TensorFlow weights", "load them with transformers 4 (`from_tf=True`) and save them again"),
    (r"flax_model\.msgpack", "Flax weights", "load them with transformers 4 (`from_flax=True`) and save them again"),
    (r".*\.(pt|pth|ckpt)", "a training checkpoint", "load it into the transformers model and call save_pretrained"),
    (r"(global_step\d+|zero_to_fp32\.py)", "a DeepSpeed checkpoint",
     "run its zero_to_fp32.py, and put the result beside config.json as pytorch_model.bin"),
    (r"snapshots", "a cache entry of the Hugging Face hub", "give its snapshots/COMMIT directory"),
)  # fmt: skip
"""Names of what people have in place of weights: pattern, what it is, what to do."""


@dataclass(frozen=True)
class Base:
    """A model directory whose files exist and are complete, as far as that shows without loading them."""

    directory: Path
    config: JsonFields
    files: tuple[str, ...]
    """Relative to the directory, in the order in which they are loaded."""
    tensors: Mapping[str, Tensor]
    """Of the safetensors files."""
    opaque: tuple[str, ...]
    """Those of `files` that only torch can look into."""


def inspect(directory: Path) -> Base:
    """Find the weights in a directory. Raises WeightsError with the names of what is missing or damaged."""
    names = _listing(directory)
    config = _config(directory, names)
    files, listed = _files(directory, names, config)
    tensors: dict[str, Tensor] = {}
    opaque: list[str] = []
    damaged: list[tuple[str, Damaged]] = []
    for file in files:
        try:
            if file.endswith(".safetensors"):
                _merge(tensors, read_safetensors(directory / file, file))
            else:
                check_torch_file(directory / file)
                opaque.append(file)
        except Damaged as error:
            damaged.append((file, error))
    if damaged:
        raise _damaged_error(directory, damaged, listed)
    if not opaque:
        _check_index(directory, listed, tensors)
        _check_names(directory, list(tensors))
    return Base(directory, config, files, tensors, tuple(opaque))


def read_config(directory: Path) -> JsonFields:
    """The `config.json` of a model directory. Raises WeightsError if it cannot be used."""
    return _config(directory, _listing(directory))


def _listing(directory: Path) -> set[str]:
    try:
        return {entry.name for entry in directory.iterdir()}
    except NotADirectoryError as error:
        hint = f"give its directory: {directory.parent}"
        raise WeightsError(f"{directory} is a file, expected the directory of a model", hint) from error
    except FileNotFoundError as error:
        raise WeightsError(f"there is no directory {directory}", "relative paths start at the job file") from error
    except OSError as error:
        raise WeightsError(f"{directory} cannot be read: {error.strerror or error}") from error


def _config(directory: Path, names: set[str]) -> JsonFields:
    if CONFIG not in names:
        what, hint = _instead(directory, names)
        raise WeightsError(f"{directory} has no {CONFIG}{what}", hint)
    try:
        config = read_text_json(directory / CONFIG)
    except Damaged as error:
        raise WeightsError(f"{directory / CONFIG} {error.why}", error.hint) from error
    kind, known = config.get("model_type"), get_args(Architecture)
    if kind not in known:
        what = f"is of a {kind} model, which is not supported" if kind else "has no model_type"
        raise WeightsError(f"{directory / CONFIG} {what}", f"supported: {', '.join(sorted(known))}")
    quantised = config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise WeightsError(
            f"the weights in {directory} are quantised ({method or 'quantization_config in its config.json'})",
            "training needs the original weights: fp32, bf16 or fp16",
        )
    return config


def _files(directory: Path, names: set[str], config: JsonFields) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """Files to load, and for each tensor that an index lists, the file it should be in."""
    adapters = sorted(name for name in names if name.startswith("adapter_model."))
    explicit = config.get("transformers_weights")  # a file name that transformers prefers to the usual ones
    candidates = (str(explicit), *CANDIDATES) if explicit else CANDIDATES
    named = next((name for name in candidates if name in names), None)
    if named is None:
        what, hint = _instead(directory, names)
        raise WeightsError(f"{directory} has no weights: none of {', '.join(CANDIDATES)}{what}", hint)
    if adapters:
        raise WeightsError(
            f"{directory} has weights of a model and of an adapter ({adapters[0]}): which are meant is unclear",
            "merge the adapter (merge_and_unload) and save the result, or move the adapter's files away",
        )
    if not named.endswith(".json"):
        return (named,), {}
    listed = weight_map(directory / named)
    return tuple(dict.fromkeys(listed.values())), listed


def weight_map(index: Path) -> Mapping[str, str]:
    """Tensor to file, as an index has it. Raises WeightsError."""
    try:
        listed = read_text_json(index).get("weight_map")
    except Damaged as error:
        raise WeightsError(f"{index} {error.why}", error.hint) from error
    found = listed if isinstance(listed, dict) else {}
    files = {name: file for name, file in found.items() if isinstance(file, str)}
    if not files or len(files) < len(found):
        raise WeightsError(f"{index} has no weight_map from tensors to files", AGAIN_HINT)
    for file in files.values():
        if Path(file).is_absolute() or ".." in Path(file).parts or not file.endswith((".safetensors", ".bin")):
            raise WeightsError(f"{index} names {file!r}, expected a .safetensors or .bin file beside it")
    return files


def _instead(directory: Path, names: set[str]) -> tuple[str, str | None]:
    """What the directory has instead of weights, as the end of a sentence, and what to do about it."""
    shards = sorted(name for name in names if _SHARD.fullmatch(name))
    if shards and CONFIG in names:
        return f". It has shards ({few(shards)}), but not their index", "download or copy the index too"
    for pattern, what, hint in _FOREIGN:
        if found := sorted(name for name in names if re.fullmatch(pattern, name)):
            return f". It has {what} ({few(found)})", hint
    inner = sorted(name for name in names if any((directory / name / file).exists() for file in (CONFIG, *CANDIDATES)))
    if inner:
        return f". There is a model in {few(inner)}", f"set `model.pretrained` to {directory / inner[0]}"
    if not names:
        return ": it is empty", AGAIN_HINT
    return f". It has {few(sorted(names))}", "give a directory that save_pretrained wrote, or a hub id"


def _merge(tensors: dict[str, Tensor], more: Mapping[str, Tensor]) -> None:
    for name, tensor in more.items():
        if name in tensors:
            raise Damaged(f"contains {name}, as does {tensors[name].file}", "remove the files of the other save")
        tensors[name] = tensor


def _damaged_error(directory: Path, damaged: list[tuple[str, Damaged]], listed: Mapping[str, str]) -> WeightsError:
    parts = []
    for file, error in damaged:
        lost = [name for name, where in listed.items() if where == file]
        parts.append(f"{file} {error.why}" + (f" (it should hold {few(lost)})" if lost else ""))
    return WeightsError(f"the weights in {directory} are damaged: {few(parts, '; ')}", damaged[0][1].hint)


def _check_index(directory: Path, listed: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    lost = [name for name in listed if name not in tensors]
    if lost:
        raise WeightsError(
            f"the weights in {directory} are damaged: no shard holds {few(lost)}, which {INDEX} lists",
            "the index and the shards are of different saves: download or copy all of them again",
        )


def _check_names(directory: Path, names: list[str]) -> None:
    """What is certain without a model: no model that is supported has such names."""
    wrapper = known_wrapper(names)
    if wrapper is not None:
        raise wrapped(str(directory), wrapper, names)
