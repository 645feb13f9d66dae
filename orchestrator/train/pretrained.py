"""Weights that exist already: a local directory or a hub id, checked before minutes are spent on it."""

from typing import TYPE_CHECKING, Any

from orchestrator.data.manifest import DataManifest
from orchestrator.domain.errors import UsageError
from orchestrator.spec.job import JobSpec

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

# The hub answers within a second where it can be reached at all.
HUB_TIMEOUT_S = 5.0


def pretrained_config(spec: JobSpec, manifest: DataManifest) -> "PretrainedConfig":
    """The config of `model.pretrained` with `model.config` on top and dropout off.

    Raises UsageError where it cannot be had, or does not fit the tokenizer or the sequence length.
    """
    from transformers import AutoConfig

    from orchestrator.train.models import ARCHITECTURES, check_positions

    name = spec.model.pretrained
    assert name is not None
    offline = _check_reachable(name, spec.model.revision)
    try:
        config = AutoConfig.from_pretrained(name, revision=spec.model.revision or "main", local_files_only=offline)
    except (OSError, ValueError) as error:
        raise UsageError(f"model.pretrained: {name}: {error}", hint=_HINT) from error
    architecture = ARCHITECTURES.get(config.model_type)
    given = dict(spec.model.config)
    if architecture is None:
        raise UsageError(
            f"model.pretrained: {name} is a {config.model_type} model, which is not supported",
            hint=f"Supported: {', '.join(sorted(ARCHITECTURES))}.",
        )
    values: dict[str, Any] = {**dict.fromkeys(architecture.dropouts, 0.0), **given, "use_cache": False}
    for field, value in values.items():
        if not hasattr(config, field):
            raise UsageError(f"model.config: {name} ({config.model_type}) has no field {field}", hint="Leave it out.")
        setattr(config, field, value)
    _check_vocabulary(name, config, manifest)
    check_positions(config, architecture.positions, manifest.sequence_length)
    return config


def load_pretrained(spec: JobSpec, config: "PretrainedConfig") -> "nn.Module":
    """The weights as fp32, whatever they were saved in: masters are made from them."""
    import torch

    from orchestrator.train.models import ARCHITECTURES

    name = spec.model.pretrained
    assert name is not None
    offline = _check_reachable(name, spec.model.revision)
    model_type = ARCHITECTURES[config.model_type].model_type()
    # A head that the files lack is drawn afresh: from the seed, the same on every rank.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.train.seed)
        try:
            return model_type.from_pretrained(  # type: ignore[no-any-return]
                name,
                config=config,
                revision=spec.model.revision or "main",
                local_files_only=offline,
                dtype=torch.float32,
            )
        except (OSError, ValueError) as error:
            raise UsageError(f"model.pretrained: {name}: {error}", hint=_HINT) from error


_HINT = (
    "Give a directory with config.json and *.safetensors, or the id of a hub repository that this machine can reach."
)


def _check_reachable(name: str, revision: str | None) -> bool:
    """True where the hub need not be asked: a local directory, or a repository in the local cache.

    Raises UsageError within seconds where the hub is needed and cannot be reached, or does not have it.
    """
    from orchestrator.train.models import is_local

    if is_local(name):
        return True
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
        cached = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision)
        if isinstance(cached, str):
            return True
        raise UsageError(
            f"model.pretrained: {name} is not in the local cache and the hub cannot be reached: {error}", hint=_HINT
        ) from error
    return False


def _transport_error() -> type[Exception]:
    """What the hub client's HTTP library raises where there is no network; the library differs between releases."""
    import importlib

    from huggingface_hub.utils._http import get_session

    library = importlib.import_module(type(get_session()).__module__.partition(".")[0])
    error: type[Exception] = library.HTTPError
    return error


def _check_vocabulary(name: str, config: "PretrainedConfig", manifest: DataManifest) -> None:
    if manifest.vocab_size > config.vocab_size:
        raise UsageError(
            f"the tokenizer has {manifest.vocab_size} tokens, but {name} has rows for {config.vocab_size}",
            hint="Use the tokenizer that belongs to the model: leave `tokenizer` out.",
        )
