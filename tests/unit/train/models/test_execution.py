import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.domain.devices.device import deterministic_environment
from orchestrator.domain.errors import UsageError
from orchestrator.run.launcher import TRAIN_ENTRY, workload_of
from orchestrator.spec.checks.check_execution import ALL_KINDS, attention_kinds
from orchestrator.spec.loading.load import LoadedJob, load_job
from orchestrator.spec.spec_errors import SpecError
from orchestrator.train.models.architectures import ARCHITECTURES, build_model
from orchestrator.train.models.base_check import check_base
from orchestrator.train.models.execution import attention_implementation, check_execution, set_numerics, slow_precision
from orchestrator.train.standalone import _check_base
from tests.unit.spec.jobs_for_tests import edited
from tests.unit.train.builders import manifest_with, spec_with
from tests.unit.train.models.test_architectures import TINY

pytestmark = pytest.mark.unit


def spec_of(architecture: str = "gpt2", resources: dict[str, Any] | None = None, **changes: Any) -> Any:
    """`attention` of the model, the rest of `train`."""
    attention = changes.pop("attention", "auto")
    spec = spec_with(
        {"architecture": architecture, "config": TINY[architecture], "attention": attention}, train=changes or None
    )
    return spec.model_copy(update={"resources": spec.resources.model_copy(update=resources or {})})


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_the_table_of_attentions_is_what_the_models_have(architecture: str) -> None:
    model_type = ARCHITECTURES[architecture].model_type()
    flags = {"sdpa": model_type._supports_sdpa, "flash": model_type._supports_flash_attn}
    kinds = attention_kinds(architecture)
    assert [kind for kind in ALL_KINDS if flags.get(kind, bool(kinds))] == list(kinds)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_attention_is_built_as_asked(architecture: str) -> None:
    """And its logits are the same, whichever."""
    tokens = torch.arange(10, 26)[None]
    logits = []
    for kind in ("auto", *(kind for kind in attention_kinds(architecture) if kind != "flash")):
        model: Any = build_model(spec_of(architecture, attention=kind), manifest_with())
        expected = {"auto": "sdpa" if "sdpa" in attention_kinds(architecture) else "eager"}.get(kind, kind)
        assert not attention_kinds(architecture) or model.config._attn_implementation == expected
        with torch.no_grad():
            logits.append(model.eval()(input_ids=tokens).logits)
    for each in logits[1:]:
        torch.testing.assert_close(each, logits[0], rtol=1e-4, atol=1e-5)


def test_attention_that_a_pretrained_model_does_not_have_is_refused() -> None:
    with pytest.raises(UsageError, match=r"model\.attention: sdpa does not go with gpt_neo"):
        attention_implementation(spec_of(attention="sdpa"), "gpt_neo")
    assert attention_implementation(spec_of(attention="flash"), "llama") == "flash_attention_2"


def test_what_is_not_installed_is_named_before_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_execution(spec_of())
    if not any(importlib.util.find_spec(name) for name in ("flash_attn", "kernels")):
        with pytest.raises(UsageError, match=r"^model\.attention: flash needs the package flash-attn"):
            check_execution(spec_of(attention="flash"))
    if importlib.util.find_spec("triton") is None:
        with pytest.raises(UsageError, match=r"^train\.compile: blocks needs the package triton"):
            check_execution(spec_of(compile="blocks", resources={"gpus_per_worker": 1}))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UsageError, match=r"^train\.compile: blocks needs a compiler \(g\+\+ or clang\+\+\)"):
        check_execution(spec_of(compile="blocks"))


def test_numerics_are_set_and_set_back() -> None:
    try:
        set_numerics(spec_of(deterministic=True), "cuda")
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.backends.cudnn.deterministic
        assert torch.get_float32_matmul_precision() == "high"
        set_numerics(spec_of(tf32=False), "cuda")
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        set_numerics(spec_of(), "cpu")
    assert torch.get_float32_matmul_precision() == "highest"
    assert deterministic_environment(True)["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert deterministic_environment(False) == {}


def test_fp32_on_a_gpu_that_is_faster_in_bf16_is_told() -> None:
    assert slow_precision(spec_of(precision="bf16"), (9, 0)) is None
    assert slow_precision(spec_of(), (7, 5)) is None
    told = slow_precision(spec_of(), (9, 0))
    assert told is not None
    assert "train.precision: bf16" in told
    assert "train.tf32" not in told
    assert "train.tf32" in (slow_precision(spec_of(tf32=False), (8, 0)) or "")


def job_at(directory: Path, *changes: tuple[str, str]) -> LoadedJob:
    path = directory / "job.yaml"
    path.write_text(edited(*changes))
    return load_job(path)


def test_what_is_not_installed_is_told_at_its_place_in_the_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job = job_at(tmp_path, ("  lr: 1e-3\n", "  lr: 1e-3\n  compile: blocks\n"))
    assert workload_of(job.spec, TRAIN_ENTRY).question is not None
    assert workload_of(spec_of(), TRAIN_ENTRY).question is None
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    with pytest.raises(SpecError) as raised:
        _check_base(job)
    (problem,) = raised.value.problems
    assert str(problem).startswith(f"{job.path}:21:12: `train.compile`: blocks needs a compiler")
    assert problem.hint is not None


def test_attention_of_a_pretrained_model_is_checked_before_data_is_tokenised(tmp_path: Path) -> None:
    base: Any = build_model(spec_of("gpt_neo"), manifest_with())
    base.config.save_pretrained(tmp_path / "base")
    spec = spec_of(attention="sdpa")
    model = spec.model.model_copy(update={"architecture": None, "config": {}, "pretrained": str(tmp_path / "base")})
    with pytest.raises(UsageError, match=r"^model\.attention: sdpa does not go with gpt_neo"):
        check_base({"spec": spec.model_copy(update={"model": model}).model_dump(), "thorough": False})
