"""Comparisons as sentences. Pure."""

from collections.abc import Sequence

from orchestrator.domain.errors import WeightsError
from orchestrator.weights.name_prefixes import Wrapper, any_wrapper
from orchestrator.weights.tensor_match import Comparison, Misshaped, Wanted

NAMED = 5
"""So many names are given in full; of the others the number."""


def few(items: Sequence[str], separator: str = ", ") -> str:
    """`a, b, c, d, e and 7 more`."""
    shown = separator.join(items[:NAMED])
    return f"{shown} and {len(items) - NAMED} more" if len(items) > NAMED else shown


def wrapped(place: str, wrapper: Wrapper, names: Sequence[str]) -> WeightsError:
    """The names carry a wrapper's prefix."""
    carrying = [name for name in names if wrapper.part in name]
    share = "every name carries" if wrapper.everywhere else f"{len(carrying)} of {len(names)} names carry"
    origin = f" of {wrapper.origin}" if wrapper.origin else ""
    if any(".lora_" in name for name in names):
        hint = "they are of an adapter that is not merged: merge_and_unload() and save_pretrained() give a model"
    else:
        strip = f"{{name.replace({wrapper.part!r}, ''): tensor for name, tensor in load_file(FILE).items()}}"
        hint = f"save the model inside the wrapper, or strip the prefix: safetensors.torch.save_file({strip}, NEW)"
    return WeightsError(
        f"the weights in {place} do not have the model's names: {share} the prefix `{wrapper.part}`{origin}, "
        f"for example {few(carrying[:2])}",
        hint,
    )


def misfit(place: str, wanted: Wanted, names: Sequence[str], found: Comparison) -> WeightsError:
    """The error for a comparison that does not fit; `names` are those of all tensors found."""
    if len(found.unexpected) * 2 > len(names):
        wrapper = any_wrapper(names, wanted)
        if wrapper is not None:
            return wrapped(place, wrapper, names)
    parts = []
    if found.missing:
        parts.append(f"missing: {few(found.missing)} ({len(found.missing)} of {len(wanted.slots)})")
    if found.unexpected:
        parts.append(f"unexpected: {few(found.unexpected)} ({len(found.unexpected)} of {len(names)})")
    if found.misshaped:
        parts.append(f"of another shape: {few([_shapes(each) for each in found.misshaped])}")
    if found.unusable:
        parts.append(f"stored as {found.unusable[0][1]}: {few([name for name, _ in found.unusable])}")
    if found.repeated:
        parts.append(f"given twice: {few([f'{one} and {two}' for one, two in found.repeated])}")
    message = f"the weights in {place} are not those of the {wanted.model} in its config.json; {'; '.join(parts)}"
    return WeightsError(message, _hint(wanted, found))


def _shapes(each: Misshaped) -> str:
    return f"{each.name} is {list(each.found)}, expected {list(each.wanted)}"


def _hint(wanted: Wanted, found: Comparison) -> str:
    if any("lora_" in name for name in found.unexpected):
        return "they are of an adapter that is not merged: merge_and_unload() and save_pretrained() give a model"
    quantised = ("qweight", "qzeros", "scales", "weight_scale", "weight_scale_inv", "absmax", "quant_map", "SCB")
    if found.unusable or any(name.rpartition(".")[2] in quantised for name in found.unexpected):
        return "the weights are quantised; training needs the original ones: fp32, bf16 or fp16"
    if not found.filled:
        return "config.json is of another model than the weights: take both from the same place"
    if found.missing and all("head" in name or name.startswith("cls.") for name in found.missing):
        return (
            "the output layer is missing: if it shares the embedding's weights, set `tie_word_embeddings: true` in "
            "config.json; otherwise save the model with its head (AutoModelForCausalLM, AutoModelForMaskedLM)"
        )
    if found.misshaped and not (found.missing or found.unexpected):
        rows = all(each.found[1:] == each.wanted[1:] for each in found.misshaped)
        if rows and any("emb" in each.name or "wte" in each.name for each in found.misshaped):
            return "the vocabulary was resized: `vocab_size` in config.json must be the number of rows"
        return "config.json is of another size of the model: take config and weights from the same place"
    if found.unexpected and not (found.missing or found.misshaped):
        return "the model has no place for these: remove them, or take the config.json that belongs to the weights"
    return "download or copy the model again, and take config.json and weights from the same place"
