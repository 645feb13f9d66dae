import pytest
import torch

from orchestrator.train.models.architectures import build_model
from orchestrator.train.models.flops import ModelSize, flops_per_token, peak_flops, utilisation
from orchestrator.train.models.sizing import model_size
from tests.unit.train.builders import manifest_with, spec_with

pytestmark = pytest.mark.unit


def test_formula_by_hand() -> None:
    size = ModelSize(parameters=1000, matmul_parameters=800, attention_widths=((64, 2**62), (64, 10)))
    assert flops_per_token(size, 100) == 6 * 800 + 12 * 64 * 100 + 12 * 64 * 10


def test_gpt2_counts_the_tied_head_and_not_the_positions() -> None:
    size = model_size(build_model(spec_with(), manifest_with()))
    width, vocabulary, layers = 32, 300, 2
    block = 12 * width**2 + 13 * width
    assert size.parameters == vocabulary * width + 16 * width + layers * block + 2 * width
    assert size.matmul_parameters == size.parameters - 16 * width
    assert size.attention_widths == ((32, 2**62),) * 2


def test_untied_input_embeddings_are_a_lookup() -> None:
    model = {"architecture": "llama", "config": _LLAMA}
    size = model_size(build_model(spec_with(model), manifest_with()))
    assert size.parameters - size.matmul_parameters == 300 * 32


def test_windows_and_recurrent_models() -> None:
    neo = {"architecture": "gpt_neo", "config": {"num_layers": 3, "hidden_size": 32, "num_heads": 2, "window_size": 4}}
    assert model_size(build_model(spec_with(neo), manifest_with())).attention_widths == (
        (32, 2**62),
        (32, 4),
        (32, 2**62),
    )
    mamba = {"architecture": "mamba", "config": {"hidden_size": 32, "num_hidden_layers": 1}}
    assert model_size(build_model(spec_with(mamba), manifest_with())).attention_widths == ()


def test_formula_agrees_with_counted_operations() -> None:
    """torch counts the products of forward and backward; the formula is for those, here at full attention."""
    from torch.utils.flop_counter import FlopCounterMode

    length = 16
    model = build_model(spec_with(), manifest_with())
    model.config._attn_implementation = "eager"
    ids = torch.zeros((2, length), dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids).logits.sum().backward()
    expected = flops_per_token(model_size(model), length) * 2 * length
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA H200", "bf16", 989e12),
        ("NVIDIA A100-SXM4-80GB", "fp16", 312e12),
        ("NVIDIA A10G", "bf16", 70e12),
        ("NVIDIA L4", "bf16", 121e12),
        ("Tesla T4", "fp16", 65e12),
        ("Tesla T4", "bf16", None),
        ("NVIDIA L400 Imaginary", "bf16", None),
        ("cpu", "fp32", None),
    ],
)
def test_peaks(name: str, precision: str, expected: float | None) -> None:
    assert peak_flops(name, precision) == expected


def test_utilisation() -> None:
    assert utilisation(300e12, 989e12, 2) == pytest.approx(300 / 1978)
    assert utilisation(300e12, None, 2) is None


_LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
