"""Frames between vaults, workers and the driver: each is checked when it arrives."""

import pytest

from orchestrator.checkpoint.memory import frames
from orchestrator.checkpoint.memory.frames import MalformedFrameError, decode, handling
from orchestrator.checkpoint.memory.wire import Channel, WireError
from orchestrator.json_values import JsonObject

pytestmark = pytest.mark.unit

COPY: JsonObject = {
    "do": "copy", "generation": 3, "rank": 1, "world_size": 2, "slot": 0, "step": 7, "payload_bytes": 100,
    "slot_state_bytes": 10, "state_bytes": 5, "index_bytes": 0, "bytes": 105,
}  # fmt: skip
ENTRY: JsonObject = {"file": "shard-00000.bin", "index": "shard-00000.json", "size_bytes": 3, "index_digest": "d"}
SHARD: JsonObject = {"rank": 0, "entry": ENTRY, "seconds": 1, "small": {"step": 7}, "index": "{}"}


def test_whole_frames_are_taken_as_they_are() -> None:
    assert decode(frames.CopyRequest, COPY) is COPY
    assert decode(frames.CopyRequest, {**COPY, "striped": True})["striped"]
    assert decode(frames.CopyRequest, {**COPY, "of": "a later version"})["step"] == 7
    answer: JsonObject = {"shards": [SHARD, {"rank": 1, "pending": True, "parts": 4}]}
    assert [shard["rank"] for shard in decode(frames.WrittenAnswer, answer)["shards"]] == [0, 1]
    create: JsonObject = {"do": "create", "generation": 0, "rank": 0, "world_size": 1, "payload_bytes": 1,
                          "slot_state_bytes": 1, "numa_node": None}  # fmt: skip
    assert decode(frames.CreateRequest, create)["numa_node"] is None


@pytest.mark.parametrize("name", [name for name in COPY if name != "bytes"])
def test_no_field_may_be_missing(name: str) -> None:
    with pytest.raises(MalformedFrameError, match=f"CopyRequest: the field `{name}` is missing"):
        decode(frames.CopyRequest, {key: value for key, value in COPY.items() if key != name})


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("step", "7", "`step` is a text"),
        ("step", 7.5, "`step` is a number"),
        ("step", None, "`step` is null"),
        ("rank", True, "`rank` is true or false"),
        ("striped", 1, "`striped` is a number"),
        ("do", "share", "`do` is a text"),
    ],
)
def test_no_field_may_have_another_type(name: str, value: object, said: str) -> None:
    frame: JsonObject = {**COPY, name: value}  # type: ignore[dict-item]
    with pytest.raises(MalformedFrameError, match=said):
        decode(frames.CopyRequest, frame)


@pytest.mark.parametrize(
    "shards", [None, {}, [1], [{}], [{"rank": "0"}], [{"rank": 0, "entry": 5}], [{"rank": 0, "seconds": "1"}]]
)
def test_what_is_inside_a_list_is_checked_too(shards: object) -> None:
    frame: JsonObject = {"shards": shards}  # type: ignore[dict-item]
    with pytest.raises(MalformedFrameError):
        decode(frames.WrittenAnswer, frame)
    peers: JsonObject = {"do": "peers", "generation": 3, "addresses": ["127.0.0.1:1", 5]}
    with pytest.raises(MalformedFrameError, match="`addresses` is a list"):
        decode(frames.PeersRequest, peers)


def test_a_handler_gets_frames_of_its_kind_only() -> None:
    taken: list[int] = []

    def forget(_: Channel, frame: frames.ForgetRequest) -> None:
        taken.append(frame["before"])

    handler = handling(frames.ForgetRequest, forget)
    handler(None, {"do": "forget", "before": 4})  # type: ignore[arg-type]
    with pytest.raises(WireError, match="`before` is missing"):
        handler(None, {"do": "forget"})  # type: ignore[arg-type]
    assert taken == [4]
