"""What vaults, workers and the driver say to each other: one type for each request and each answer, checked on arrival.

A frame is a JSON object; `do` names a request. `bytes`, which `wire` adds, counts the raw bytes that follow it. Fields
that a side does not know are ignored, so that processes of two versions can talk.
"""

import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Literal, NotRequired, TypedDict, TypeVar, cast

from orchestrator.checkpoint.memory.wire import Channel, WireError
from orchestrator.json_values import JsonObject, kind_of


class MalformedFrameError(WireError, ValueError):
    """A frame lacks a field, or one of its fields has another type than expected."""


class GenerationFields(TypedDict):
    """What every frame has that concerns one generation of the gang."""

    generation: int


class StateFields(GenerationFields):
    """Whose state: a rank of one generation of the gang."""

    rank: int


class StepFields(StateFields):
    """The state of one step."""

    step: int


class MemoryFields(StateFields):
    """The memory that a cell takes."""

    world_size: int
    payload_bytes: int
    slot_state_bytes: int


class CellFields(MemoryFields):
    """A cell to be made."""

    pid: NotRequired[int]
    """Of the worker that writes it, if it is of the vault's own node."""
    numa_node: NotRequired[int | None]
    """Where its memory should lie."""


class CreateRequest(CellFields):
    """A worker asks its node's vault for a cell; the index follows. Answer: CreateAnswer."""

    do: Literal["create"]
    bytes: NotRequired[int]


class CreateAnswer(TypedDict):
    """A descriptor of the vault's process, to map."""

    descriptor: int


class FilledRequest(StepFields):
    """A worker has filled a slot. Not answered."""

    do: Literal["filled"]


class ReportRequest(StepFields):
    """The report of a step follows. Not answered."""

    do: Literal["report"]
    copy: bool
    """From another vault, not from the worker."""
    bytes: NotRequired[int]


class ReportsRequest(TypedDict):
    """The driver asks for reports of the steps after one. Answer: ReportsAnswer."""

    do: Literal["reports"]
    after: int


class ReportsAnswer(TypedDict):
    """The reports follow, one after the other."""

    sizes: list[int]


class StoreRequest(StepFields):
    """A worker wants a slot written to storage. Not answered; see WrittenRequest."""

    do: Literal["store"]
    place: str
    name: str
    tag: str
    extra: JsonObject


class WrittenRequest(GenerationFields):
    """The driver asks what has come of the shards of a step. Answer: WrittenAnswer."""

    do: Literal["written"]
    step: int


class ShardAnswer(TypedDict):
    """What has come of one shard: `pending`, or `error` with its `fault`, or what the manifest needs to know of it."""

    rank: int
    pending: NotRequired[bool]
    parts: NotRequired[int]
    """Written so far, of one that is pending."""
    error: NotRequired[str]
    fault: NotRequired[str]
    """A `StorageFault`."""
    entry: NotRequired[JsonObject]
    """A `ShardEntry`."""
    seconds: NotRequired[float]
    small: NotRequired[JsonObject]
    """See `SmallState.manifest`."""
    index: NotRequired[str]
    """Of rank 0."""


class WrittenAnswer(TypedDict):
    """Of the ranks whose shards were ordered at this vault."""

    shards: list[ShardAnswer]


class PeersRequest(GenerationFields):
    """The driver says where the states of a generation are copied to. Answer: empty."""

    do: Literal["peers"]
    addresses: list[str]


class CopyRequest(CellFields):
    """A vault sends a slot: its index, unless the peer has it, its small state, and the payload, or `striped` no
    payload. Answer: empty, or of a striped one TicketAnswer."""

    do: Literal["copy"]
    slot: int
    step: int
    state_bytes: int
    index_bytes: int
    striped: NotRequired[bool]


class TicketAnswer(TypedDict):
    """What the stripes of a slot are sent under."""

    ticket: int


class TicketFields(StateFields):
    """The slot whose stripes are sent."""

    ticket: int


class StripeRequest(TicketFields):
    """A part of a slot's payload follows. Answer: empty."""

    do: Literal["stripe"]
    offset: int
    bytes: NotRequired[int]


class WholeRequest(TicketFields):
    """All stripes of a slot have been sent. Answer: empty."""

    do: Literal["whole"]


class ShareRequest(MemoryFields):
    """A vault lets a peer on its host hold the memory of a cell; the index follows, unless the peer has it. Answer:
    empty."""

    do: Literal["share"]
    step: int
    index_bytes: int
    pid: int
    descriptor: int
    serial: int


class InventoryRequest(TypedDict):
    """The driver asks what is held. Answer: InventoryAnswer."""

    do: Literal["inventory"]


class HeldStep(TypedDict):
    """A step of one rank that is whole in a vault."""

    generation: int
    rank: int
    world_size: int
    own: bool
    """Written by a worker of the vault's own node."""
    step: int
    bytes: int


class InventoryAnswer(TypedDict):
    """Everything whole that a vault holds."""

    held: list[HeldStep]
    memory_bytes: int
    problem: str
    generation: int
    """The newest that the vault has heard of."""
    copies: NotRequired[JsonObject]
    """A `CopyFigures`; a vault of an earlier version has none."""


class DescribeRequest(StepFields):
    """A restoring worker requests the index and the small state of a step. Answer: DescribeAnswer."""

    do: Literal["describe"]


class DescribeAnswer(TypedDict):
    """The small state and the index follow."""

    descriptor: int
    slot: int
    serial: int
    payload_bytes: int
    slot_state_bytes: int
    state_bytes: int


class ReadRequest(StepFields):
    """A restoring worker requests bytes [offset, offset + length) of a payload. They follow the empty answer."""

    do: Literal["read"]
    offset: int
    length: int


class ForgetRequest(TypedDict):
    """The driver frees the cells of generations before one. Answer: empty."""

    do: Literal["forget"]
    before: int


class FenceRequest(GenerationFields):
    """A driver takes over: generations before its own must not write any more. Answer: FenceAnswer."""

    do: Literal["fence"]


class FenceAnswer(TypedDict):
    """Pids of the workers that had to be ended, and of those that could not be."""

    ended: list[int]
    left: list[int]


F = TypeVar("F")


def decode(kind: type[F], frame: JsonObject) -> F:
    """The frame as one of the types above. Raises MalformedFrameError."""
    _check(kind, frame)
    return cast(F, frame)


def handling(kind: type[F], handle: Callable[[Channel, F], None]) -> Callable[[Channel, JsonObject], None]:
    """A handler of untyped frames, from one for frames of a kind. It raises MalformedFrameError for any other."""
    return lambda channel, frame: handle(channel, decode(kind, frame))


@cache
def _fields(kind: type) -> tuple[Mapping[str, object], frozenset[str]]:
    """The types of a frame's fields, and which of them it must have."""
    hints = typing.get_type_hints(kind, localns={"JsonValue": object})  # what is inside an object is not checked
    return hints, getattr(kind, "__required_keys__", frozenset())


def _check(kind: type, frame: Mapping[str, object]) -> None:
    hints, required = _fields(kind)
    for name, hint in hints.items():
        if name not in frame:
            if name in required:
                raise MalformedFrameError(f"{kind.__name__}: the field `{name}` is missing")
        elif not _fits(frame[name], hint):
            raise MalformedFrameError(f"{kind.__name__}: the field `{name}` is {kind_of(frame[name])}")


def _fits(value: object, hint: object) -> bool:
    """Whether a JSON value is of a type that occurs in a frame."""
    if type(value) is hint:
        return True
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin is types.UnionType:
        return any(_fits(value, each) for each in arguments)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict)
    if not isinstance(hint, type):
        return False
    if typing.is_typeddict(hint):
        if isinstance(value, dict):
            _check(hint, value)
        return isinstance(value, dict)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and isinstance(value, bool) == (hint is bool)
