"""`zero.deepspeed`: every key known to DeepSpeed, and none that the spec decides."""

from collections.abc import Iterator, Mapping, Set

from orchestrator.json_values import JsonObject
from orchestrator.spec.checks.deepspeed_keys import ALLOWED, DECIDED, REMOVED, ZERO_ALLOWED, ZERO_DECIDED, ZERO_REMOVED
from orchestrator.spec.checks.partial_job import View
from orchestrator.spec.loading.hints import nearest
from orchestrator.spec.spec_errors import Path, Problem

_HERE: Path = ("zero", "deepspeed")


def deepspeed_passthrough(view: View) -> Iterator[Problem]:
    """Keys that are unknown, gone from DeepSpeed, or another way to say what the spec says."""
    passed = view.mapping(_HERE)
    yield from _section(view, _HERE, passed, ALLOWED, DECIDED, REMOVED)
    zero = passed.get("zero_optimization")
    if isinstance(zero, dict):
        yield from _section(view, (*_HERE, "zero_optimization"), zero, ZERO_ALLOWED, ZERO_DECIDED, ZERO_REMOVED)
    elif "zero_optimization" in passed:
        yield view.problem((*_HERE, "zero_optimization"), "`zero_optimization` is not a section, expected one")


def _section(
    view: View, path: Path, passed: JsonObject, allowed: Set[str], decided: Mapping[str, str], removed: Set[str]
) -> Iterator[Problem]:
    section = ".".join(str(part) for part in path)
    for key, value in passed.items():
        where = (*path, key)
        if key in decided:
            message = f"`{section}` may not hold `{key}`: the job spec decides it"
            yield view.problem(where, message, _instead(decided[key]), key=True)
        elif key in removed:
            yield view.problem(where, f"DeepSpeed no longer has `{key}` and refuses it", "remove it", key=True)
        elif key not in allowed:
            yield view.unknown_key(where, "DeepSpeed has no such setting", _hint(key, allowed, decided))
        elif value == "auto":
            hint = "remove the line: DeepSpeed's default is used"
            yield view.problem(where, f"`{key}` is `auto`, which only the Hugging Face Trainer fills in", hint)


def _instead(reason: str) -> str:
    return reason if reason.startswith(("set ", "write ")) else f"remove it: {reason}"


def _hint(key: str, allowed: Set[str], decided: Mapping[str, str]) -> str | None:
    elsewhere = allowed is ALLOWED and nearest(key, ZERO_ALLOWED | ZERO_DECIDED.keys())
    near = nearest(key, allowed | decided.keys())
    if elsewhere == key or (elsewhere and not near):
        if elsewhere in ZERO_DECIDED:
            return _instead(ZERO_DECIDED[elsewhere])
        return f"did you mean `zero_optimization.{elsewhere}`?"
    if near is not None and near in decided:
        return _instead(decided[near])
    return f"did you mean `{near}`?" if near else None
