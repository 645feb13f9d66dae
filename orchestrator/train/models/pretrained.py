"""Weights that exist already: a local directory or a hub id, checked before minutes are spent on it."""

from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.data.data_manifest import DataManifest
from orchestrator.domain.errors import UsageError, WeightsError
from orchestrator.json_values import JsonObject
from orchestrator.spec.job import JobSpec
from orchestrator.weights.model_directory import CANDIDATES, CONFIG, inspect, read_config, weight_map
from orchestrator.weights.pretrained_location import too_few_rows
from orchestrator.weights.tensor_match import Tensor
from orchestrator.weights.wording import few

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

    from orchestrator.train.models.shares import Keep

# The hub answers within a second where it can be reached at all.
HUB_TIMEOUT_S = 5.0


def pretrained_config(spec: JobSpec, manifest: DataManifest) -> "PretrainedConfig":
    """The config of `model.pretrained` with `model.config` on top and dropout off.

    Raises UsageError if it cannot be had, or does not fit the tokenizer or the sequence length.
    """
    config = base_config(spec, manifest.sequence_length)
    if manifest.vocab_size > config.vocab_size:
        raise too_few_rows(str(spec.model.pretrained), config.vocab_size, manifest.vocab_size)
    return config


def base_config(spec: JobSpec, sequence_length: int) -> "PretrainedConfig":
    """As `pretrained_config`, before there is a tokenizer."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    from orchestrator.train.models.architectures import ARCHITECTURES, check_positions

    name = spec.model.pretrained
    assert name is not None
    offline = _check_reachable(name, spec.model.revision)
    if is_local(name):
        read_config(Path(name))
    try:
        config = AutoConfig.from_pretrained(name, revision=spec.model.revision or "main", local_files_only=offline)
    except (StrictDataclassError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"model.pretrained: {name}: its {CONFIG} cannot be used: {error}", hint=_HINT) from error
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None:
        raise UsageError(
            f"model.pretrained: {name} is a {config.model_type} model, which is not supported",
            hint=f"Supported: {', '.join(sorted(ARCHITECTURES))}.",
        )
    given = dict(spec.model.config)
    values: JsonObject = {**dict.fromkeys(architecture.dropouts, 0.0), **given, "use_cache": False}
    for field, value in values.items():
        if not hasattr(config, field):
            raise UsageError(f"model.config: {name} ({config.model_type}) has no field {field}", hint="Leave it out.")
        setattr(config, field, value)
    check_positions(config, architecture.positions, sequence_length)
    return config


def load_pretrained(spec: JobSpec, config: "PretrainedConfig", keep: "Keep | None" = None) -> "nn.Module":
    """The weights as fp32, whatever they were saved in: masters are made from them. `keep`: see `build_model`.

    Raises WeightsError, with names, unless the files hold every weight of the model, whole, and nothing else.
    """
    import torch

    from orchestrator.train.models.architectures import ARCHITECTURES
    from orchestrator.train.models.pretrained_weights import load_kept, load_weights

    model_type = ARCHITECTURES[config.model_type].model_type()
    base = inspect(base_directory(spec.model.pretrained or "", spec.model.revision))
    if keep is not None:
        return load_kept(config, base, keep, spec.train.seed)
    return load_weights(model_type, config, base, torch.float32, spec.train.seed)


def is_local(pretrained: str) -> bool:
    """Whether `model.pretrained` names a directory rather than a hub id."""
    return Path(pretrained).is_dir()


def directory_here(name: str, revision: str | None) -> Path | None:
    """The model's directory if nothing has to be downloaded: a local one, or the cached one of a hub that cannot be
    reached. Raises UsageError if there is neither."""
    if is_local(name):
        return Path(name)
    if not _check_reachable(name, revision):
        return None
    import huggingface_hub

    return Path(str(huggingface_hub.try_to_load_from_cache(name, CONFIG, revision=revision or "main"))).parent


def base_directory(name: str, revision: str | None) -> Path:
    """The local directory with config and weights, downloaded if need be. Raises UsageError."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    here = directory_here(name, revision)
    if here is not None:
        return here
    revision = revision or "main"
    try:
        first = _weights_of_hub(name, revision)
        directory = Path(huggingface_hub.hf_hub_download(name, CONFIG, revision=revision)).parent
        file = huggingface_hub.hf_hub_download(name, first, revision=revision)
        if first.endswith(".json"):
            for shard in dict.fromkeys(weight_map(Path(file)).values()):
                huggingface_hub.hf_hub_download(name, shard, revision=revision)
    except EntryNotFoundError as error:
        raise WeightsError(f"the hub's {name} is incomplete: {_last_line(error)}", _HINT) from error
    except (HfHubHTTPError, OSError, _transport_error()) as error:
        raise WeightsError(f"the weights of {name} cannot be downloaded: {_last_line(error)}", "run again") from error
    return directory


def _weights_of_hub(name: str, revision: str) -> str:
    """The file of a hub repository that has the weights, or lists the files that have them. Raises WeightsError."""
    import huggingface_hub

    siblings = huggingface_hub.model_info(name, revision=revision, timeout=HUB_TIMEOUT_S).siblings or []
    names = [sibling.rfilename for sibling in siblings]
    chosen = next((candidate for candidate in CANDIDATES if candidate in names), None)
    if chosen is None:
        raise WeightsError(f"the hub's {name} has no weights: none of {', '.join(CANDIDATES)}. It has {few(names)}")
    return chosen


def hub_tensors(name: str, revision: str | None) -> dict[str, Tensor] | None:
    """What the safetensors files of a hub repository declare, from their headers alone; None if it has others.

    Raises WeightsError if they are damaged, or the hub does not give them.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, NotASafetensorsRepoError, SafetensorsParsingError

    try:
        found = huggingface_hub.HfApi().get_safetensors_metadata(name, revision=revision)
    except NotASafetensorsRepoError:
        _weights_of_hub(name, revision or "main")  # raises if there are no others either
        return None
    except SafetensorsParsingError as error:
        raise WeightsError(f"the weights of {name} on the hub are damaged: {_last_line(error)}", _HINT) from error
    except (HfHubHTTPError, OSError, _transport_error()) as error:
        raise WeightsError(f"the weights of {name} cannot be inspected: {_last_line(error)}", "run again") from error
    return {
        tensor: Tensor(tuple(entry.shape), str(entry.dtype), file)
        for file, metadata in found.files_metadata.items()
        for tensor, entry in metadata.tensors.items()
    }


_HINT = (
    "Give a directory with config.json and *.safetensors, or the id of a hub repository that this machine can reach."
)


def _check_reachable(name: str, revision: str | None) -> bool:
    """True if the hub need not be asked: a local directory, or a repository in the local cache.

    Raises UsageError within seconds if the hub is needed and cannot be reached, or does not have it.
    """
    if is_local(name):
        return True
    if Path(name).is_file():
        raise UsageError(f"model.pretrained: {name} is a file, expected the directory of a model", hint=_HINT)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UsageError(f"model.pretrained: there is no directory {name}", hint=_HINT)
    import huggingface_hub
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    revision = revision or "main"
    try:
        huggingface_hub.model_info(name, revision=revision, timeout=HUB_TIMEOUT_S)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UsageError(f"model.pretrained: the hub has no {name} at revision {revision}", hint=_HINT) from error
    except HFValidationError as error:
        raise UsageError(f"model.pretrained: {name} is neither a directory nor a hub id", hint=_HINT) from error
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, _transport_error()) as error:
        cached = huggingface_hub.try_to_load_from_cache(name, CONFIG, revision=revision)
        if isinstance(cached, str):
            return True
        raise UsageError(
            f"model.pretrained: {name} is no directory here, not in the local cache, and the hub cannot be reached: "
            f"{_last_line(error)}",
            hint=_HINT,
        ) from error
    return False


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _transport_error() -> type[Exception]:
    """Exceptions of the hub client's HTTP library without a network; the library differs between releases."""
    import importlib

    from huggingface_hub.utils._http import get_session

    library = importlib.import_module(type(get_session()).__module__.partition(".")[0])
    error: type[Exception] = library.HTTPError
    return error
