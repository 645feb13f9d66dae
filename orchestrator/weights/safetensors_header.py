"""The header of a safetensors file, read without a library, and what other content gives itself away.

Format: 8 bytes, little-endian, the length of a JSON object; the object, which gives each tensor's type, shape and
offsets; the data, without gaps (https://github.com/huggingface/safetensors#format).
"""

import json
import math
import os
import stat
import zipfile
from pathlib import Path

from orchestrator.json_values import JsonObject, JsonShapeError, JsonValue, integers, text
from orchestrator.weights.tensor_match import Tensor

MAX_HEADER_BYTES = 100_000_000
"""As the safetensors library has it."""

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip

LFS_MAGIC = b"version https://git-lfs"
LFS_HINT = "fetch the content: `git lfs pull` in the repository (`git lfs install` first if git does not know lfs)"
AGAIN_HINT = "download or copy the file again"


class Damaged(Exception):
    """A file is not what its name says, or not all of it. `why` completes "FILE ...": "is empty"."""

    def __init__(self, why: str, hint: str = AGAIN_HINT) -> None:
        super().__init__(why)
        self.why = why
        self.hint = hint


def read_safetensors(path: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a file in the order of its header; `name` is the file's in messages. Raises Damaged."""
    size = regular_size(path)
    try:
        with path.open("rb") as file:
            start = file.read(64)
            length = int.from_bytes(start[:8], "little")
            # Judged by the ninth byte: the first ones are a number, and may look like the start of anything.
            if length > MAX_HEADER_BYTES or (size > 8 and start[8:9] != b"{") or size < 8:
                refuse_other_content(start, size)
                if start[:4] == b"PK\x03\x04":
                    raise Damaged("is a file of torch.save under a safetensors name", "rename it to pytorch_model.bin")
                raise Damaged("is not a safetensors file")
            if size < 8 + length:
                raise Damaged(f"is cut short: it ends within its header ({size} of at least {8 + length} bytes)")
            file.seek(8)
            header = file.read(length)
    except OSError as error:
        raise Damaged(f"cannot be read: {error.strerror or error}", "check its permissions and the disk") from error
    return _tensors(_parsed(header), size - 8 - length, name)


def check_torch_file(path: Path) -> None:
    """Check without unpickling whether this can be a complete file of torch.save. Raises Damaged."""
    size = regular_size(path)
    try:
        with path.open("rb") as file:
            start = file.read(64)
        refuse_other_content(start, size)
        if start[:4] == b"PK\x03\x04":
            if not zipfile.is_zipfile(path):
                raise Damaged("is cut short: the end of the archive is missing")
        elif start[:1] != b"\x80" and b"ustar" not in start:
            raise Damaged("is not a PyTorch file")
    except OSError as error:
        raise Damaged(f"cannot be read: {error.strerror or error}", "check its permissions and the disk") from error


def read_text_json(path: Path) -> JsonObject:
    """A JSON object from a small file. Raises Damaged."""
    size = regular_size(path)
    if size > MAX_HEADER_BYTES:
        raise Damaged(f"is no JSON: it has {size} bytes")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise Damaged(f"cannot be read: {error.strerror or error}", "check its permissions and the disk") from error
    if raw.startswith(LFS_MAGIC):
        raise Damaged("is a git-LFS pointer, not the file itself", LFS_HINT)
    try:
        value: JsonValue = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        page = raw.lstrip()[:1] == b"<"
        raise Damaged("is a web page" if page else f"is not JSON: {str(error)[:120]}") from error
    if not isinstance(value, dict):
        raise Damaged("holds no JSON object")
    return value


def regular_size(path: Path) -> int:
    """Bytes of a regular file, links followed. Raises Damaged, also if it is empty."""
    try:
        found = os.stat(path)  # noqa: PTH116  # of Path.stat the error of a link in a circle differs between versions
    except FileNotFoundError as error:
        if path.is_symlink():
            target = os.readlink(path)  # noqa: PTH115
            raise Damaged(f"is a link to {target}, which does not exist") from error
        raise Damaged("does not exist") from error
    except OSError as error:
        raise Damaged(f"cannot be read: {error.strerror or error}", "check its permissions and the disk") from error
    if not stat.S_ISREG(found.st_mode):
        raise Damaged("is not a regular file")
    if found.st_size == 0:
        raise Damaged("is empty")
    return found.st_size


def refuse_other_content(start: bytes, size: int) -> None:
    """Raises Damaged for what often lies in the place of weights."""
    text = start.lstrip()
    if start.startswith(LFS_MAGIC):
        raise Damaged(f"is a git-LFS pointer of {size} bytes, not the weights", LFS_HINT)
    if text[:1] == b"<":
        raise Damaged("is a web page, not the weights")
    if text[:1] == b"{":
        raise Damaged("is JSON text, not the weights")
    if start[:4] == b"GGUF":
        raise Damaged("is a GGUF file under another name", GGUF_HINT)
    if size < 8:
        raise Damaged(f"is cut short: it has {size} bytes")
    if not any(start[:64]):
        raise Damaged("begins with zeros: its content was never written")


GGUF_HINT = "GGUF is for inference; give the directory with the original safetensors files of the model"


def _parsed(header: bytes) -> JsonObject:
    def unique(pairs: list[tuple[str, JsonValue]]) -> JsonObject:
        value = dict(pairs)
        if len(value) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise Damaged(f"is broken: its header names {twice!r} twice")
        return value

    try:
        value: JsonValue = json.loads(header.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise Damaged("is broken: its header is not JSON") from error
    if not isinstance(value, dict):
        raise Damaged("is broken: its header is not a JSON object")
    return value


def _tensors(header: JsonObject, data_bytes: int, file: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            if not isinstance(entry, dict):
                raise JsonShapeError("no description of a tensor")
            dtype, shape = text(entry, "dtype"), tuple(integers(entry, "shape"))
            begin, end = integers(entry, "data_offsets")
        except ValueError as error:
            raise Damaged(f"is broken: its header describes {name!r} wrongly") from error
        bits = _BITS.get(dtype)
        if min(shape, default=0) < 0 or begin < 0 or (bits and (end - begin) * 8 != math.prod(shape) * bits):
            raise Damaged(f"is broken: its header gives {name!r} another size than its shape and type have")
        found[name] = Tensor(shape, dtype, file)
        spans.append((begin, end, name))
    if not found:
        raise Damaged("holds no tensors")
    _check_spans(sorted(spans), data_bytes)
    return found


def _check_spans(spans: list[tuple[int, int, str]], data_bytes: int) -> None:
    reached = 0
    for begin, end, name in spans:
        if begin != reached:
            raise Damaged(f"is broken: there is a gap or an overlap before {name!r}")
        reached = end
    if reached > data_bytes:
        lost = [name for _, end, name in spans if end > data_bytes]
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise Damaged(f"is cut short: {data_bytes} of {reached} bytes of data are there, {lost[0]} is lost{more}")
    if reached < data_bytes:
        raise Damaged(f"is broken: {data_bytes - reached} bytes follow its data")
