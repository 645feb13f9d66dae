"""Model directories as they come: good ones, and what lies in their place."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.domain.errors import WeightsError
from orchestrator.spec.loading.load import load_job
from orchestrator.spec.spec_errors import SpecError
from orchestrator.weights.model_directory import inspect
from orchestrator.weights.pretrained_location import anchored, check_files, check_rows
from tests.unit.weights.written import LFS_POINTER, NAMES, tensors, write_model, write_sharded

pytestmark = pytest.mark.unit

JOB = """name: weights
model: {pretrained: base}
data:
  sources:
    - files: ["texts/*.txt"]
  sequence_length: 32
train: {steps: 2, global_batch: 4, lr: 1e-6}
"""
SHARD = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def test_one_file_and_shards(tmp_path: Path) -> None:
    whole = inspect(write_model(tmp_path / "whole"))
    assert whole.files == ("model.safetensors",)
    assert tuple(whole.tensors) == NAMES
    sharded = inspect(write_sharded(tmp_path / "sharded"))
    assert sharded.files == ("model-00001-of-00002.safetensors", SHARD)
    assert {name: tensor.shape for name, tensor in sharded.tensors.items()} == dict.fromkeys(NAMES, (2, 2))


def test_shards_in_a_directory_of_their_own_and_links_of_the_hubs_cache(tmp_path: Path) -> None:
    base = write_sharded(tmp_path / "base")
    (base / "shards").mkdir()
    listed = json.loads((base / INDEX).read_text())["weight_map"]
    for file in set(listed.values()):
        (base / file).rename(base / "shards" / file)
    (base / INDEX).write_text(json.dumps({"weight_map": {name: f"shards/{file}" for name, file in listed.items()}}))
    assert set(inspect(base).tensors) == set(NAMES)
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for file in write_sharded(tmp_path / "models--a--b" / "blobs").iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    assert set(inspect(snapshot).tensors) == set(NAMES)
    with pytest.raises(WeightsError) as caught:
        inspect(tmp_path / "models--a--b")
    assert "snapshots/COMMIT" in (caught.value.hint or "")


def test_safetensors_come_before_bin_and_a_file_before_an_index(tmp_path: Path) -> None:
    base = write_sharded(tmp_path / "base")
    (base / "pytorch_model.bin").write_bytes(b"\x80\4 and so on")
    assert inspect(base).files[1] == SHARD
    (base / "model.safetensors").write_bytes(tensors(*NAMES))
    assert inspect(base).files == ("model.safetensors",)
    for file in base.glob("model*"):
        file.unlink()
    only = inspect(base)
    assert (only.files, only.opaque, only.tensors) == (("pytorch_model.bin",), ("pytorch_model.bin",), {})


Change = Callable[[Path], object]


def removed(name: str) -> Change:
    return lambda base: (base / name).unlink()


def holds(name: str, content: bytes | str) -> Change:
    return lambda base: (base / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def only(*files: str) -> Change:
    """Nothing but config.json and these."""

    def change(base: Path) -> None:
        for file in base.iterdir():
            if file.name != "config.json":
                file.unlink()
        for name in files:
            (base / name).write_bytes(b"content")

    return change


def config(**fields: object) -> Change:
    return holds("config.json", json.dumps({"model_type": "llama", "vocab_size": 300} | fields))


def index(**changed: str | None) -> Change:
    """The index with other files for some tensors (None: not listed)."""

    def change(base: Path) -> None:
        value = json.loads((base / INDEX).read_text())
        value["weight_map"] |= {name.replace("__", "."): file for name, file in changed.items()}
        (base / INDEX).write_text(json.dumps(value))

    return change


BAD: dict[str, tuple[Change, list[str]]] = {
    "a shard is missing": (removed(SHARD), [f"{SHARD} does not exist", NAMES[2], NAMES[3]]),
    "a shard is a pointer": (holds(SHARD, LFS_POINTER), [SHARD, "git-LFS pointer", "git lfs pull", NAMES[2]]),
    "all are pointers": (
        lambda base: [file.write_bytes(LFS_POINTER) for file in base.glob("*.safetensors")],
        ["model-00001-of-00002.safetensors", SHARD, "git lfs pull"],
    ),
    "a shard is a page": (holds(SHARD, "<!DOCTYPE html><html></html>"), [SHARD, "web page"]),
    "a shard is cut short": (holds(SHARD, tensors(*NAMES[2:])[:-3]), [SHARD, "cut short", "lm_head.weight is lost"]),
    "a shard is empty": (holds(SHARD, b""), [SHARD, "is empty"]),
    "a shard lacks a tensor": (holds(SHARD, tensors(NAMES[2])), ["no shard holds lm_head.weight", INDEX]),
    "two shards hold a tensor": (
        holds(SHARD, tensors(*NAMES[1:])),
        [f"{SHARD} contains {NAMES[1]}, as does model-00001-of-00002.safetensors"],
    ),
    "the index lists what nobody has": (index(model__extra=SHARD), ["no shard holds model.extra"]),
    "the index leads outside": (index(model__extra="../../etc/x.safetensors"), ["'../../etc/x.safetensors'"]),
    "the index leads away": (index(model__extra="/etc/x.safetensors"), ["'/etc/x.safetensors'"]),
    "the index is a pointer": (holds(INDEX, LFS_POINTER), [INDEX, "git-LFS pointer", "git lfs pull"]),
    "the index is cut short": (holds(INDEX, '{"weight_map": {'), [INDEX, "is not JSON"]),
    "the index is of something else": (holds(INDEX, '{"weights": {}}'), [INDEX, "weight_map"]),
    "the index is missing": (removed(INDEX), ["has no weights", "shards (model-00001", "index"]),
    "no weights": (only("tokenizer.json"), ["has no weights", "model.safetensors", "tokenizer.json"]),
    "GGUF": (only("model-q4.gguf"), ["has no weights", "GGUF files (model-q4.gguf)", "safetensors"]),
    "an adapter beside a config": (only("adapter_model.safetensors", "adapter_config.json"), ["adapter", "merge"]),
    "Meta's format": (only("consolidated.00.pth", "params.json"), ["Meta's", "consolidated.00.pth"]),
    "TensorFlow": (only("tf_model.h5"), ["TensorFlow weights (tf_model.h5)"]),
    "a training checkpoint": (only("ckpt.pt"), ["training checkpoint (ckpt.pt)", "save_pretrained"]),
    "DeepSpeed": (only("zero_to_fp32.py"), ["DeepSpeed checkpoint", "zero_to_fp32.py"]),
    "no config": (removed("config.json"), ["has no config.json"]),
    "a config of a pointer": (holds("config.json", LFS_POINTER), ["config.json is a git-LFS pointer"]),
    "a config that is a page": (holds("config.json", "<html>"), ["config.json is a web page"]),
    "a config of nothing known": (config(model_type="t5"), ["t5 model, which is not supported", "llama"]),
    "a config without a type": (holds("config.json", "{}"), ["has no model_type"]),
    "GPTQ": (config(quantization_config={"quant_method": "gptq", "bits": 4}), ["quantised (gptq)", "bf16"]),
    "an adapter besides": (holds("adapter_model.safetensors", "x"), ["adapter (adapter_model.safetensors)", "merge"]),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_what_is_wrong_is_named(tmp_path: Path, case: str) -> None:
    change, parts = BAD[case]
    base = write_sharded(tmp_path / "base")
    change(base)
    with pytest.raises(WeightsError) as caught:
        inspect(base)
    text = f"{caught.value.message}\n{caught.value.hint}"
    assert [part for part in parts if part not in text] == [], text
    assert str(base) in text


@pytest.mark.parametrize("prefix", ["_orig_mod.", "base_model.model.", "module."])
def test_a_wrappers_prefix_needs_no_model_to_be_told(tmp_path: Path, prefix: str) -> None:
    base = write_model(tmp_path / "base", tuple(prefix + name for name in NAMES))
    with pytest.raises(WeightsError, match=f"every name carries the prefix `{prefix}`"):
        inspect(base)


def test_a_model_further_down_is_pointed_at(tmp_path: Path) -> None:
    write_model(tmp_path / "outer" / "inner")
    with pytest.raises(WeightsError) as caught:
        inspect(tmp_path / "outer")
    assert str(tmp_path / "outer" / "inner") in (caught.value.hint or "")
    (tmp_path / "void").mkdir()
    with pytest.raises(WeightsError, match=r"has no config.json: it is empty"):
        inspect(tmp_path / "void")
    with pytest.raises(WeightsError, match="is a file"):
        inspect(tmp_path / "outer" / "inner" / "model.safetensors")


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "project" / "job.yaml"
    write_model(path.parent / "base")
    path.write_text(JOB)
    return path


def problem(job: Path, *overrides: str) -> str:
    with pytest.raises(SpecError) as caught:
        check_files(load_job(job, overrides))
    assert caught.value.exit_code == 2
    return caught.value.message


def test_the_job_file_is_pointed_at(job: Path) -> None:
    check_files(load_job(job))
    (job.parent / "base" / "model.safetensors").write_bytes(LFS_POINTER)
    assert problem(job).startswith(f"{job}:2:21: `model.pretrained`: the weights in {job.parent / 'base'} are damaged")
    shutil.copytree(job.parent / "base", job.parent / "other")
    assert problem(job, "model.pretrained=other").startswith("--set model.pretrained=other:1:24: `model.pretrained`")


def test_paths_are_relative_to_the_job_file(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (job.parent / "link").symlink_to("base")
    for name in ("base", "./base/", "../project/base", "link", str(job.parent / "base")):
        loaded = load_job(Path("../project/job.yaml"), [f"model.pretrained={name}"])
        check_files(loaded)
        assert anchored(loaded.spec, loaded.path.parent).model.pretrained == str(
            job.parent / ("link" if name == "link" else "base")
        )
    monkeypatch.setenv("HOME", str(job.parent))
    loaded = load_job(job, ["model.pretrained=~/base"])
    assert anchored(loaded.spec, job.parent).model.pretrained == str(job.parent / "base")
    hub = load_job(job, ["model.pretrained=someone/model"])
    check_files(hub)
    assert anchored(hub.spec, job.parent) == hub.spec


def test_a_path_where_nothing_is(job: Path) -> None:
    assert "there is no directory" in problem(job, "model.pretrained=./gone")
    # `convoy validate` may run on another machine than the job.
    check_files(load_job(job, ["model.pretrained=./gone"]), must_exist=False)


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows(job: Path) -> None:
    spec = load_job(job).spec
    check_rows(spec, job.parent, 300)
    with pytest.raises(WeightsError, match=r"301 tokens, but .* has rows for 300"):
        check_rows(spec, job.parent, 301)


def test_headers_are_all_that_is_read(tmp_path: Path) -> None:
    """`convoy validate` answers at once, whatever the size of the weights: here 64 GB, in a sparse file."""
    from tests.unit.weights.written import file_of, header_of

    base = write_model(tmp_path / "base")
    header = header_of({f"model.layers.{i}.weight": (1 << 15, 1 << 13) for i in range(64)})
    with (base / "model.safetensors").open("wb") as file:
        file.write(file_of(header, 0))
        file.truncate(file.tell() + 64 * (1 << 30))
    started = time.process_time()
    assert len(inspect(base).tensors) == 64
    assert time.process_time() - started < 0.5
    assert (base / "model.safetensors").stat().st_blocks < 1000
