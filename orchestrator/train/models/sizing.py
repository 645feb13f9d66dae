"""Measure a model for the FLOP formula: counts its parameters, reads its config. Before ZeRO partitions it."""

from typing import TYPE_CHECKING

from torch import nn

from orchestrator.train.models.flops import ModelSize

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def model_size(model: "PreTrainedModel") -> ModelSize:
    """Parameter counts and attention widths of a plainly built Hugging Face model."""
    parameters = {id(p): p.numel() for p in model.parameters()}
    head = model.get_output_embeddings()
    multiplied = {id(head.weight)} if head is not None else set()
    lookups = {
        id(module.weight): module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Embedding) and id(module.weight) not in multiplied
    }
    return ModelSize(
        parameters=sum(parameters.values()),
        matmul_parameters=sum(parameters.values()) - sum(lookups.values()),
        attention_widths=_attention_widths(model.config),
    )


def _attention_widths(config: "PretrainedConfig") -> tuple[tuple[int, int], ...]:
    """Heads x head size and window of every attention layer; none for recurrent models, whose state update is not
    counted (it is small beside the matrix products)."""
    heads = getattr(config, "num_attention_heads", None)
    if heads is None:
        return ()
    layers = int(config.num_hidden_layers)
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    everything = 2**62
    window = getattr(config, "sliding_window", None) or everything
    if config.model_type == "gpt_neo":
        windows = [config.window_size if kind == "local" else everything for kind in config.attention_layers]
    elif getattr(config, "layer_types", None) is not None:
        windows = [window if kind == "sliding_attention" else everything for kind in config.layer_types]
    else:
        windows = [window] * layers
    return tuple((int(heads) * int(head_size), int(w)) for w in windows)
