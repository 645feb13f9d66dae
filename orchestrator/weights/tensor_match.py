"""What the files of a pretrained model hold, compared with what the model needs. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

FLOATING = frozenset({"F64", "F32", "F16", "BF16"})
"""Stored types, as safetensors spells them, that a floating-point weight may come in."""

_RENAMED = ((re.compile(r"LayerNorm\.gamma$"), "LayerNorm.weight"), (re.compile(r"LayerNorm\.beta$"), "LayerNorm.bias"))
"""Names that TensorFlow checkpoints of BERT left behind; transformers renames them too."""


@dataclass(frozen=True)
class Tensor:
    """A tensor as a file declares it."""

    shape: tuple[int, ...]
    dtype: str
    """As safetensors spells it: `F32`, `BF16`, `I8`, ..."""
    file: str
    """Name of the file, relative to the model's directory."""


@dataclass(frozen=True)
class Slot:
    """A place in the model that a tensor has to fill."""

    shape: tuple[int, ...]
    floating: bool = True


@dataclass(frozen=True)
class Wanted:
    """Everything that the model has to be given."""

    model: str
    """Class of the model, for messages."""
    slots: Mapping[str, Slot]
    """By name: every parameter and persistent buffer."""
    tied: Mapping[str, str]
    """Pairs of slots that share one tensor: either name is enough."""
    prefix: str = ""
    """Name of the base model inside the model; files may have it in front of every name, or leave it out."""
    spare: tuple[str, ...] = ()
    """Patterns of tensors that files may hold although the model has no place for them."""
    fresh: tuple[str, ...] = ()
    """Patterns of slots that the task fills with new weights on purpose: files may lack them."""


@dataclass(frozen=True)
class Misshaped:
    """A tensor whose shape is not the slot's."""

    name: str
    found: tuple[int, ...]
    wanted: tuple[int, ...]


@dataclass(frozen=True)
class Comparison:
    """What does not fit; empty tuples mean that everything does."""

    missing: tuple[str, ...]
    """Slots without a tensor, in the model's order."""
    unexpected: tuple[str, ...]
    """Tensors without a slot, in the files' order."""
    misshaped: tuple[Misshaped, ...]
    unusable: tuple[tuple[str, str], ...]
    """(tensor, stored type) of weights that are stored as integers or 8-bit floats."""
    repeated: tuple[tuple[str, str], ...]
    """Pairs of tensors that would fill the same slot."""
    filled: Mapping[str, str]
    """Slot to the name of the tensor that fills it."""

    @property
    def fits(self) -> bool:
        """Whether the files hold exactly what the model needs."""
        return not (self.missing or self.unexpected or self.misshaped or self.unusable or self.repeated)


def slot_of(name: str, wanted: Wanted) -> str:
    """The slot that a tensor of this name belongs to, if there is one of that name."""
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    if not wanted.prefix:
        return name
    inner = name.removeprefix(f"{wanted.prefix}.")
    if inner != name and inner in wanted.slots:
        return inner
    outer = f"{wanted.prefix}.{name}"
    return outer if outer in wanted.slots else name


def compare(wanted: Wanted, found: Mapping[str, Tensor]) -> Comparison:
    """Match tensors to slots, by name, shape and stored type."""
    filled: dict[str, str] = {}
    unexpected: list[str] = []
    misshaped: list[Misshaped] = []
    unusable: list[tuple[str, str]] = []
    repeated: list[tuple[str, str]] = []
    for name, tensor in found.items():
        place = slot_of(name, wanted)
        slot = wanted.slots.get(place)
        if slot is None:
            if not matches(wanted.spare, name):
                unexpected.append(name)
            continue
        if place in filled:
            repeated.append((filled[place], name))
            continue
        filled[place] = name
        if tensor.shape != slot.shape:
            misshaped.append(Misshaped(name, tensor.shape, slot.shape))
        if slot.floating and tensor.dtype not in FLOATING:
            unusable.append((name, tensor.dtype))
    return Comparison(
        missing=_missing(wanted, filled),
        unexpected=tuple(unexpected),
        misshaped=tuple(misshaped),
        unusable=tuple(unusable),
        repeated=tuple(repeated),
        filled=filled,
    )


def _missing(wanted: Wanted, filled: Mapping[str, str]) -> tuple[str, ...]:
    """Of slots that share a tensor none is missing if one is filled, and if none is, only the first is named."""
    groups: dict[str, str] = {}
    for target, source in wanted.tied.items():
        groups[target] = groups.setdefault(source, source)
    present = {groups.get(name, name) for name in filled}
    named: set[str] = set()
    missing = []
    for name in wanted.slots:
        group = groups.get(name, name)
        if group in present or group in named or matches(wanted.fresh, name):
            continue
        named.add(group)
        missing.append(name)
    return tuple(missing)


def matches(patterns: tuple[str, ...], name: str) -> bool:
    """Whether any of the patterns is found in a name."""
    return any(re.search(pattern, name) for pattern in patterns)
