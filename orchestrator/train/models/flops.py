"""How much arithmetic a token costs, and how much a device can do. Pure functions.

Training FLOPs per token are 6 N + 12 L H Q T (PaLM, arXiv:2204.02311, appendix B): N the parameters that take part in
a matrix product, L layers, H heads of size Q, T the positions a token attends to. The forward pass costs 2 N and
4 L H Q T, the backward pass twice that. As in PaLM causality is not discounted, nor is recomputation counted.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSize:
    """What the formula needs to know of a model."""

    parameters: int
    """All parameters, tied ones once."""
    matmul_parameters: int
    """Without lookup tables (token and position embeddings); a table tied to the output head counts: the head
    multiplies by it."""
    attention_widths: tuple[tuple[int, int], ...]
    """(H x Q, window) of each layer with attention; window is the most positions it attends to."""


def flops_per_token(size: ModelSize, sequence_length: int) -> float:
    """Forward and backward FLOPs of one token in a sample of `sequence_length` tokens."""
    attention = sum(width * min(window, sequence_length) for width, window in size.attention_widths)
    return 6.0 * size.matmul_parameters + 12.0 * attention


# Dense peak in FLOP/s by precision, without sparsity, from the vendors' data sheets. fp32 is what torch does by
# default: without TF32. The longest name that occurs in the device's name is taken.
_PEAKS: dict[str, dict[str, float]] = {
    "H200": {"bf16": 989e12, "fp16": 989e12, "fp32": 67e12},
    "H100 PCIe": {"bf16": 756e12, "fp16": 756e12, "fp32": 51e12},
    "H100 NVL": {"bf16": 835e12, "fp16": 835e12, "fp32": 60e12},
    "H100": {"bf16": 989e12, "fp16": 989e12, "fp32": 67e12},
    "B200": {"bf16": 2250e12, "fp16": 2250e12, "fp32": 75e12},
    "A100": {"bf16": 312e12, "fp16": 312e12, "fp32": 19.5e12},
    "A10G": {"bf16": 70e12, "fp16": 70e12, "fp32": 35e12},
    "A10": {"bf16": 125e12, "fp16": 125e12, "fp32": 31.2e12},
    "A40": {"bf16": 149.7e12, "fp16": 149.7e12, "fp32": 37.4e12},
    "L40S": {"bf16": 362e12, "fp16": 362e12, "fp32": 91.6e12},
    "L40": {"bf16": 181e12, "fp16": 181e12, "fp32": 90.5e12},
    "L4": {"bf16": 121e12, "fp16": 121e12, "fp32": 30.3e12},
    "V100": {"fp16": 125e12, "fp32": 15.7e12},
    "T4": {"fp16": 65e12, "fp32": 8.1e12},
    "RTX 4090": {"bf16": 165e12, "fp16": 165e12, "fp32": 82.6e12},
    "RTX 3090": {"bf16": 71e12, "fp16": 71e12, "fp32": 35.6e12},
}


def peak_flops(device_name: str, precision: str) -> float | None:
    """Dense peak of one device in FLOP/s, or None if it is not known, as on any CPU."""
    words = set(device_name.replace("-", " ").split())
    best = ""
    for name in _PEAKS:
        if set(name.split()) <= words and len(name) > len(best):
            best = name
    return _PEAKS[best].get(precision) if best else None


def utilisation(flops_per_s: float, peak: float | None, devices: int) -> float | None:
    """Model FLOP utilisation of `devices` equal devices, None if the peak is unknown."""
    return None if peak is None else flops_per_s / (peak * devices)
