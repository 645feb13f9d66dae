"""From spec to model: the architectures, their configs, fresh or pretrained weights."""

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from orchestrator.data.data_manifest import DataManifest
from orchestrator.domain.errors import UsageError
from orchestrator.json_values import JsonFields, JsonObject, JsonValue
from orchestrator.spec.job import JobSpec

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from orchestrator.train.models.shares import Keep

Objective = Literal["causal", "masked"]


@dataclass(frozen=True)
class Architecture:
    """How one Hugging Face architecture is built, by names, so that only its own module is imported."""

    name: str
    config_class: str
    model_class: str
    objective: Objective
    positions: str | None
    """Config field of the number of positions; None if the architecture has no limit."""
    dropouts: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()
    """Patterns of tensors that published checkpoints hold besides the model's own: constants, heads of other tasks."""

    def config_type(self) -> "type[PretrainedConfig]":
        module = importlib.import_module(f"transformers.models.{self.name}.configuration_{self.name}")
        found: type[PretrainedConfig] = getattr(module, self.config_class)
        return found

    def model_type(self) -> "type[PreTrainedModel]":
        module = importlib.import_module(f"transformers.models.{self.name}.modeling_{self.name}")
        found: type[PreTrainedModel] = getattr(module, self.model_class)
        return found


def _rope(name: str, prefix: str) -> Architecture:
    return Architecture(
        name, f"{prefix}Config", f"{prefix}ForCausalLM", "causal", "max_position_embeddings", ("attention_dropout",)
    )


ARCHITECTURES: dict[str, Architecture] = {
    a.name: a
    for a in (
        Architecture(
            "gpt2",
            "GPT2Config",
            "GPT2LMHeadModel",
            "causal",
            "n_positions",
            ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
            (r"\.attn\.bias$",),
        ),
        Architecture(
            "gpt_neo",
            "GPTNeoConfig",
            "GPTNeoForCausalLM",
            "causal",
            "max_position_embeddings",
            ("resid_dropout", "embed_dropout", "attention_dropout"),
            (r"\.attn\.attention\.bias$",),
        ),
        _rope("llama", "Llama"),
        _rope("mistral", "Mistral"),
        _rope("qwen2", "Qwen2"),
        _rope("qwen3", "Qwen3"),
        Architecture(
            "bert",
            "BertConfig",
            "BertForMaskedLM",
            "masked",
            "max_position_embeddings",
            ("hidden_dropout_prob", "attention_probs_dropout_prob"),
            (r"(^|\.)pooler\.dense\.", r"^cls\.seq_relationship\."),
        ),
        Architecture("rwkv", "RwkvConfig", "RwkvForCausalLM", "causal", "context_length"),
        Architecture("mamba", "MambaConfig", "MambaForCausalLM", "causal", None),
    )
}

FRESH: dict[Objective, tuple[str, ...]] = {"causal": (), "masked": ()}
"""Patterns of weights that a task draws although the model is pretrained, such as a classifier's head. All others have
to be in the files."""


def model_config(spec: JobSpec, manifest: DataManifest) -> "PretrainedConfig":
    """The Hugging Face config: the user's fields over ours (vocabulary, special ids, positions, no dropout).

    Raises UsageError for an unknown field, a field the tokenizer decides, too few positions, or pretrained
    weights that do not fit the tokenizer.
    """
    if spec.model.pretrained is not None:
        from orchestrator.train.models.pretrained import pretrained_config

        return pretrained_config(spec, manifest)
    assert spec.model.architecture is not None, "the spec guarantees one of architecture and pretrained"
    architecture = ARCHITECTURES[spec.model.architecture]
    config_type = architecture.config_type()
    given = dict(spec.model.config)
    _check_fields(architecture, config_type, given)
    values: JsonObject = dict.fromkeys(architecture.dropouts, 0.0)
    values |= {
        "vocab_size": manifest.vocab_size,
        "bos_token_id": manifest.eos_id,
        "eos_token_id": manifest.eos_id,
        # Some architectures give the padding id's embedding no gradient: not where it is a real token too.
        "pad_token_id": manifest.pad_id if manifest.pad_id != manifest.eos_id else None,
        "use_cache": False,
    }
    if architecture.positions is not None:
        values[architecture.positions] = manifest.sequence_length
    if architecture.name == "gpt_neo" and "attention_types" not in given:
        values["attention_types"] = _alternating(int(given.get("num_layers", 24)))  # type: ignore[arg-type]
    try:
        config = config_type(**{**values, **given})
    except (TypeError, ValueError) as error:
        raise UsageError(f"model.config: {architecture.name} refuses it: {error}") from error
    check_positions(config, architecture.positions, manifest.sequence_length)
    return config


def build_model(
    spec: JobSpec, manifest: DataManifest, restored: bool = False, keep: "Keep | None" = None
) -> "nn.Module":
    """The model in fp32 on the host, the same on every rank: fresh weights are drawn from `train.seed`.

    `restored`: a saved state replaces all weights before they are used. None are drawn or loaded then, which takes
    seconds for each hundred million; they are NaN, so that one that is missed cannot train on in silence.

    `keep`: what this process keeps of each parameter (`shares.keep_for`). The values are the same, bit for bit, but at
    no time is more in memory than what is kept and the parameter that is being written. DeepSpeed's own way to build a
    model too large for one process, `zero.Init`, is of no use here: transformers' initialisation does not reach
    parameters that are partitioned already and would start from wrong weights without a word.

    The process's random state is left as it was.
    """
    import torch

    from orchestrator.train.models.compilation import compile_blocks
    from orchestrator.train.models.execution import attention_implementation

    config = model_config(spec, manifest)
    attention = attention_implementation(spec, config.model_type)
    if attention is not None:
        config._attn_implementation = attention
    model: PreTrainedModel
    if restored:
        model = _without_weights(config, keep)
        if spec.model.pretrained is not None:
            model.config.dtype = torch.float32  # as loading does, whatever the files are in
    elif spec.model.pretrained is not None:
        from orchestrator.train.models.pretrained import load_pretrained

        model = load_pretrained(spec, config, keep)
    else:
        model = _drawn(config, spec.train.seed, keep)
    if spec.train.activation_checkpointing:
        # The non-reentrant kind works with ZeRO-3's hooks and with inputs that need no gradient.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if spec.train.compile == "blocks":
        compile_blocks(model)
    # With a padding id transformers looks for padding in every forward pass, which on a GPU waits for the device, and
    # warns that there is no attention mask. The task knows where padding is.
    model.config.pad_token_id = None
    model.train()
    return model  # type: ignore[no-any-return]


def skeleton(config: "PretrainedConfig") -> "PreTrainedModel":
    """The model without memory: for its names, shapes, class and ties. Raises UsageError as building it would."""
    import torch

    with torch.device("meta"):
        return _construct(config)


def _construct(config: "PretrainedConfig") -> "PreTrainedModel":
    try:
        return ARCHITECTURES[config.model_type].model_type()(config)
    except ValueError as error:  # fields that do not fit together
        raise UsageError(f"model.config: {config.model_type} refuses it: {error}") from error


def _drawn(config: "PretrainedConfig", seed: int, keep: "Keep | None") -> "PreTrainedModel":
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if keep is None:
            return _construct(config)
        from orchestrator.train.models.shares import construct_kept

        return construct_kept(lambda: _construct(config), keep)


def _without_weights(config: "PretrainedConfig", keep: "Keep | None") -> "PreTrainedModel":
    """NaN for weights, or for what is kept of them; all else as a constructor makes it."""
    if keep is None:
        model = _undrawn(config)
        erase_weights(model)
        return model
    from orchestrator.train.models.shares import give_shares

    model = without_memory(config)
    give_shares(keep, ((parameter, keep.blank(parameter)) for parameter in model.parameters()))
    return model


def without_memory(config: "PretrainedConfig") -> "PreTrainedModel":
    """All that a constructor makes, buffers and ties too, but parameters have no memory until they are given shares."""
    from orchestrator.train.models.shares import construct_bare

    return construct_bare(lambda: _undrawn(config))


def _undrawn(config: "PretrainedConfig") -> "PreTrainedModel":
    """All that a constructor makes, buffers and ties too, with weights that are not initialised."""
    import torch
    from transformers.initialization import no_init_weights

    with torch.random.fork_rng(devices=[]), no_init_weights():
        model = _construct(config)
    model.tie_weights()  # is part of what is left out
    return model


def erase_weights(model: "nn.Module") -> None:
    """Make NaN of all weights: one that is not restored afterwards cannot train on in silence."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))


def objective_of(config: "PretrainedConfig") -> Objective:
    """What the model is trained on: next tokens, or masked tokens."""
    architecture = ARCHITECTURES.get(config.model_type)
    return architecture.objective if architecture is not None else "causal"


def check_positions(config: "PretrainedConfig", field: str | None, sequence_length: int) -> None:
    """Raises UsageError if samples are longer than the model has positions for."""
    if field is None:
        return
    positions = getattr(config, field, None)
    if positions is not None and positions < sequence_length:
        raise UsageError(
            f"data.sequence_length is {sequence_length}, but the model has {positions} positions ({field})",
            hint=f"Set data.sequence_length to at most {positions}, or model.config.{field} to {sequence_length}.",
        )


def _check_fields(architecture: Architecture, config_type: "type[PretrainedConfig]", given: JsonFields) -> None:
    decided = {"vocab_size", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id"} & given.keys()
    if decided:
        raise UsageError(
            f"model.config: {', '.join(sorted(decided))} may not be set: the tokenizer and the engine decide it",
            hint="Leave it out.",
        )
    known = set(config_type().to_dict()) | set(getattr(config_type, "attribute_map", {}))
    unknown = sorted(given.keys() - known)
    if unknown:
        import difflib

        close = [match for name in unknown for match in difflib.get_close_matches(name, sorted(known), n=1)]
        raise UsageError(
            f"model.config: {architecture.config_class} has no field {', '.join(unknown)}",
            hint=f"Did you mean {', '.join(close)}?" if close else f"Fields: {', '.join(sorted(known))}.",
        )


def _alternating(layers: int) -> list[JsonValue]:
    """GPT-3's alternation of dense and local attention (arXiv:2005.14165, section 2.1) for any layer count."""
    types: list[JsonValue] = [[["global", "local"], layers // 2]] if layers >= 2 else []
    return types + ([[["global"], 1]] if layers % 2 else [])
