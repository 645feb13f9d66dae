from collections.abc import Callable

import pytest
import torch
from torch import nn

from orchestrator.domain.loss_chunks import AUTO_LOGITS_BYTES, loss_chunk_tokens
from orchestrator.train.models.linear_loss import ChunkedHead, chunked_cross_entropy
from orchestrator.train.models.tasks import IGNORE, summed_cross_entropy

pytestmark = pytest.mark.unit

TOKENS, FEATURES, VOCABULARY = 53, 24, 301
SCALE = 0.37
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]


def inputs(dtype: torch.dtype, biased: bool, targets: bool = True) -> Inputs:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(TOKENS, FEATURES, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, FEATURES, generator=generator).mul(0.3).to(dtype).requires_grad_()
    bias = torch.randn(VOCABULARY, generator=generator).to(dtype).requires_grad_() if biased else None
    labels = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    labels[::3] = IGNORE
    return hidden, weight, bias, labels if targets else torch.full_like(labels, IGNORE)


def plain_loss(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor
) -> torch.Tensor:
    return summed_cross_entropy(torch.nn.functional.linear(hidden, weight, bias), labels)


def chunked(size: int) -> Callable[..., torch.Tensor]:
    return lambda hidden, weight, bias, labels: chunked_cross_entropy(hidden, weight, bias, labels, size, IGNORE)


def loss_and_gradients(loss: Callable[..., torch.Tensor], of: Inputs) -> tuple[torch.Tensor, list[torch.Tensor]]:
    found = loss(*of)
    wanted = [each for each in of[:3] if each is not None]
    return found, list(torch.autograd.grad(found * SCALE, wanted))


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((found.double() - exact.double()).abs().max() / exact.abs().max().double())


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("size", [1, 16, TOKENS, 1000])
def test_loss_and_gradients_are_those_of_the_plain_loss(size: int, biased: bool) -> None:
    of = inputs(torch.float32, biased)
    expected, exact = loss_and_gradients(plain_loss, of)
    found, gradients = loss_and_gradients(chunked(size), of)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    for gradient, reference in zip(gradients, exact, strict=True):
        assert error(gradient, reference) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_err_no_more_than_the_plain_loss_does(dtype: torch.dtype) -> None:
    of = inputs(dtype, biased=True)
    hidden, weight, bias = (each.detach().float().requires_grad_() for each in of[:3] if each is not None)
    exactly: Inputs = (hidden, weight, bias, of[3])
    exact_loss, exact = loss_and_gradients(plain_loss, exactly)
    plain, plain_gradients = loss_and_gradients(plain_loss, of)
    found, gradients = loss_and_gradients(chunked(16), of)
    assert found.item() == pytest.approx(plain.item(), rel=1e-6)
    assert found.item() == pytest.approx(exact_loss.item(), rel=1e-2)
    for gradient, reference, other in zip(gradients, exact, plain_gradients, strict=True):
        assert gradient.dtype == dtype
        assert error(gradient, reference) < 1.5 * error(other, reference) + 1e-3


def test_a_loss_scale_beyond_fp16_does_not_overflow() -> None:
    hidden, weight, _, labels = inputs(torch.float16, biased=False)
    hidden = (hidden * 1e-3).detach()
    found = torch.autograd.grad(chunked(16)(hidden, weight, None, labels) * 2.0**17, [weight])[0]
    exactly = weight.detach().float().requires_grad_()
    expected = torch.autograd.grad(plain_loss(hidden.float(), exactly, None, labels) * 2.0**17, [exactly])[0]
    assert error(found, expected) < 2e-3


def test_no_targets_give_zero_loss_and_zero_gradients() -> None:
    found, gradients = loss_and_gradients(chunked(16), inputs(torch.float32, biased=True, targets=False))
    assert found.item() == 0.0
    assert not any(gradient.any() for gradient in gradients)


def test_evaluation_gives_the_same_loss_and_backward_works_once() -> None:
    of = inputs(torch.float32, biased=True)
    loss = chunked(16)(*of)
    with torch.no_grad():
        assert torch.equal(chunked(16)(*of), loss)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used up"):
        loss.backward()


def test_frozen_weights_get_no_gradient() -> None:
    hidden, weight, bias, labels = inputs(torch.float32, biased=True)
    chunked(16)(hidden, weight.detach(), bias, labels).backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_the_head_gives_logits_unless_it_has_labels() -> None:
    plain = nn.Linear(FEATURES, VOCABULARY, bias=False)
    head = ChunkedHead(plain, 16, IGNORE)
    assert head.weight is plain.weight
    assert [name for name, _ in head.named_parameters()] == ["weight"]
    hidden, _, _, labels = inputs(torch.float32, biased=False)
    expected = summed_cross_entropy(plain(hidden), labels).item()
    with head.scoring(labels[None]):
        assert head(hidden[None]).item() == pytest.approx(expected, rel=1e-6)
    with pytest.raises(IndexError), head.scoring(labels[None] + VOCABULARY):
        head(hidden[None])
    assert torch.equal(head(hidden), plain(hidden))


def peak_bytes(loss: Callable[..., torch.Tensor], tokens: int, vocabulary: int) -> int:
    """Most memory that forward and backward hold at once beyond the inputs: as torch's allocator tells its profiler."""
    hidden = torch.randn(tokens, 16, requires_grad=True)
    weight = torch.randn(vocabulary, 16, requires_grad=True)
    labels = torch.randint(0, vocabulary, (tokens,))
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        loss(hidden, weight, None, labels).backward()
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    events = [each for each in profile.profiler.kineto_results.events() if each.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def test_peak_memory_does_not_depend_on_tokens_times_vocabulary() -> None:
    """Only the gradients grow: of the weight by 64 bytes for each entry of the vocabulary, of the hidden states by 64
    for each token. The plain loss grows by at least 8 for each pair."""
    size = 32
    few, many = peak_bytes(chunked(size), 256, 4000), peak_bytes(chunked(size), 2048, 4000)
    assert many - few < 4 * 64 * (2048 - 256)
    small = peak_bytes(chunked(size), 2048, 2000)
    assert many - small < (64 * 2 + 12 * size) * 2000
    plain = peak_bytes(plain_loss, 2048, 4000)
    assert plain > 8 * 2048 * 4000
    assert many < plain / 10


def test_auto_chunks_only_what_is_too_large() -> None:
    assert loss_chunk_tokens("off", 10**9, 10**6) is None
    assert loss_chunk_tokens(7, 1, 10) == 7
    assert loss_chunk_tokens("auto", 4 * 1024, 8192) is None
    found = loss_chunk_tokens("auto", 4 * 4096, 128_256)
    assert found == 512
    assert found * 128_256 * 4 <= AUTO_LOGITS_BYTES
    assert loss_chunk_tokens("auto", 4096, 10**7) == 128
