"""What is wrong with a file, read from its first bytes and its size."""

import json
import os
from pathlib import Path

import pytest

from orchestrator.weights.safetensors_header import Damaged, check_torch_file, read_safetensors, read_text_json
from orchestrator.weights.tensor_match import Tensor
from tests.unit.weights.written import LFS_POINTER, file_of, header_of, tensors

pytestmark = pytest.mark.unit


def test_names_shapes_and_types_in_order(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(file_of(header_of({"b": (2, 3), "a": (), "empty": (0, 4)}, "BF16", 2)))
    found = read_safetensors(file, "model.safetensors")
    assert list(found) == ["b", "a", "empty"]
    assert found["b"] == Tensor((2, 3), "BF16", "model.safetensors")


def test_the_library_agrees(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    file = tmp_path / "model.safetensors"
    save_file({"x": np.zeros((3, 5), np.float16), "y": np.zeros(7, np.int64)}, file)
    assert read_safetensors(file, "f") == {"x": Tensor((3, 5), "F16", "f"), "y": Tensor((7,), "I64", "f")}


def test_the_length_of_the_header_may_look_like_anything(tmp_path: Path) -> None:
    """Its first byte is that of a text, a page or white space in some of 256 files."""
    text = json.dumps(header_of({"a": (2,)})).encode()
    for length in range(0x100, 0x200):
        (tmp_path / "model.safetensors").write_bytes(file_of(text.ljust(length), 8))
        assert list(read_safetensors(tmp_path / "model.safetensors", "f")) == ["a"], length


WHOLE = tensors("a", "b", "c")
OVERLAP = header_of({"a": (2, 2), "b": (2, 2)})
OVERLAP["b"]["data_offsets"] = [8, 24]
WRONG_SIZE = header_of({"a": (2, 2)})
WRONG_SIZE["a"]["shape"] = [2, 3]
NEGATIVE = header_of({"a": (2, 2)})
NEGATIVE["a"]["shape"] = [-2, -2]
NO_OFFSETS = header_of({"a": (2, 2)})
del NO_OFFSETS["a"]["data_offsets"]
ENTRY = '{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
TWICE = f'{{"a": {ENTRY}, "a": {ENTRY}}}'.encode()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b"abc", "is cut short: it has 3 bytes"),
        (LFS_POINTER, "is a git-LFS pointer"),
        (b"\n<!DOCTYPE html><html>not found</html>", "is a web page"),
        (b'{"error": "Access to model is restricted"}', "is JSON text"),
        (b"GGUF\3\0\0\0" + b"\1" * 40, "is a GGUF file"),
        (b"PK\3\4" + b"\1" * 60, "is a file of torch.save"),
        (b"\0" * 4096, "begins with zeros"),
        (b"\1" * 4096, "is not a safetensors file"),
        (WHOLE[:40], "is cut short: it ends within its header"),
        (WHOLE[:-20], "is cut short: 28 of 48 bytes of data are there, b is lost and 1 more"),
        (WHOLE[:-1], "is cut short: 47 of 48 bytes of data are there, c is lost"),
        (WHOLE + b"x", "is broken: 1 bytes follow its data"),
        (file_of(OVERLAP), "is broken: there is a gap or an overlap before 'b'"),
        (file_of(WRONG_SIZE), "is broken: its header gives 'a' another size"),
        (file_of(NEGATIVE), "is broken: its header gives 'a' another size"),
        (file_of(NO_OFFSETS, 16), "is broken: its header describes 'a' wrongly"),
        (file_of(TWICE, 4), "is broken: its header names 'a' twice"),
        (file_of(b"{" + b"x" * 100, 4), "is broken: its header is not JSON"),
        (file_of({}), "holds no tensors"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, content: bytes, why: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(Damaged) as caught:
        read_safetensors(file, "model.safetensors")
    assert caught.value.why.startswith(why)
    assert ("git lfs pull" in caught.value.hint) == (content == LFS_POINTER)


def test_what_is_no_file_at_all(tmp_path: Path) -> None:
    """A pipe would be waited for; the others have to be told apart."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    (tmp_path / "dangling").symlink_to("../blobs/gone")
    for name, why in (
        ("pipe", "is not a regular file"),
        ("directory", "is not a regular file"),
        ("dangling", "is a link to ../blobs/gone, which does not exist"),
        ("nothing", "does not exist"),
    ):
        for read in (lambda path: read_safetensors(path, "f"), check_torch_file, read_text_json):
            with pytest.raises(Damaged) as caught:
                read(tmp_path / name)
            assert caught.value.why == why


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (LFS_POINTER, "is a git-LFS pointer"),
        (b"<html></html>", "is a web page"),
        (b"PK\3\4" + b"\1" * 60, "is cut short: the end of the archive is missing"),
        (b"\1" * 60, "is not a PyTorch file"),
    ],
)
def test_a_torch_file_is_judged_without_unpickling(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(Damaged) as caught:
        check_torch_file(tmp_path / "pytorch_model.bin")
    assert caught.value.why.startswith(why)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (LFS_POINTER, "is a git-LFS pointer"),
        (b"<html>", "is a web page"),
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "holds no JSON object"),
        (b"\xff\xfe", "is not JSON"),
    ],
)
def test_json_files(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(Damaged) as caught:
        read_text_json(tmp_path / "config.json")
    assert caught.value.why.startswith(why)
    (tmp_path / "config.json").write_text("\ufeff" + json.dumps({"a": 1}))
    assert read_text_json(tmp_path / "config.json") == {"a": 1}
