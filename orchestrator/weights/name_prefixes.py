"""Names that a wrapper changed: torch.compile, PEFT, DistributedDataParallel and others prefix what they hold. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.weights.tensor_match import Wanted, slot_of

WRAPPERS: Mapping[str, str] = {
    "_orig_mod": "torch.compile",
    "base_model.model": "PEFT",
    "module": "DistributedDataParallel or DeepSpeed",
    "_fsdp_wrapped_module": "FullyShardedDataParallel",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_forward_module": "Lightning",
}
"""Parts of names, none of which any supported architecture has itself; and what puts them there."""

_LEADING_ONLY = frozenset({"module", "base_model.model"})
"""Could be a module's own name further inside."""


@dataclass(frozen=True)
class Wrapper:
    """What the names carry besides the model's own."""

    part: str
    """With its final dot: `_orig_mod.`."""
    origin: str | None
    """What adds it, if that is known."""
    everywhere: bool
    """Every name carries it; otherwise most do."""


def known_wrapper(names: Sequence[str]) -> Wrapper | None:
    """The first known wrapper that most of the names carry. Needs no model."""
    for part, origin in WRAPPERS.items():
        carrying = sum(_carries(name, part) for name in names)
        if names and carrying * 2 > len(names):
            return Wrapper(f"{part}.", origin, carrying == len(names))
    return None


def any_wrapper(names: Sequence[str], wanted: Wanted) -> Wrapper | None:
    """A known wrapper, or any other prefix without which most of the names are the model's."""
    found = known_wrapper(names)
    if found is not None:
        return found
    prefix = _common_prefix(names, wanted.slots)
    if prefix is None:
        return None
    fitting = sum(
        name.startswith(prefix) and slot_of(name.removeprefix(prefix), wanted) in wanted.slots for name in names
    )
    if fitting * 2 <= len(names):
        return None
    return Wrapper(prefix, None, all(name.startswith(prefix) for name in names))


def _carries(name: str, part: str) -> bool:
    return name.startswith(f"{part}.") or (part not in _LEADING_ONLY and f".{part}." in name)


def _common_prefix(names: Iterable[str], slots: Mapping[str, object]) -> str | None:
    """What most often stands before a slot's name."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for cut in range(1, len(parts)):
            if ".".join(parts[cut:]) in slots:
                counts[".".join(parts[:cut]) + "."] += 1
                break
    return counts.most_common(1)[0][0] if counts else None
