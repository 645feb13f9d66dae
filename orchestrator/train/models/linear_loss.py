"""Cross entropy from the last hidden states and the output head's weight, a chunk of tokens at a time.

The plain loss holds the logits of all tokens of a micro batch, their fp32 copy, the log-probabilities and the gradient:
12 to 16 bytes for each pair of a token and a vocabulary entry. Here they exist for one chunk only. Gradients are
computed in the forward pass, while the logits exist, so that nothing is computed twice; the backward pass scales them
(the scheme of Liger-Kernel, arXiv:2410.10989, section 3.2).

torch 2.13 has such a function (`torch.nn.functional.linear_cross_entropy`), torch 2.11 has none, and torch's adds up
the weight's gradient in 16 bits on GPUs. Liger-Kernel needs Triton and a GPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as functional
from torch import nn
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "logits_soft_cap")
"""Config fields of models that change the logits after the head."""


def chunked_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    chunk_tokens: int,
    ignore: int,
) -> torch.Tensor:
    """Sum of the cross entropy of `hidden @ weight.T + bias` over the positions whose label is not `ignore`: a float32
    scalar. Loss and gradients are those of `cross_entropy(logits.float(), labels, reduction="sum")`; the gradient of a
    16-bit weight is added up in fp32.

    `hidden` [tokens, features], `weight` [vocabulary, features], `bias` [vocabulary], `labels` int64 [tokens]. Memory,
    besides the gradients: two chunks of fp32 logits. Backward works once.
    """
    if torch.is_grad_enabled():
        computed: torch.Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden, weight, bias, labels, chunk_tokens, ignore
        )
        return computed
    loss = torch.zeros((), device=hidden.device)
    for first in range(0, len(hidden), chunk_tokens):
        rows = slice(first, first + chunk_tokens)
        loss += _loss(_log_probabilities(hidden[rows], weight, bias), labels[rows], ignore)
    return loss


class _Context(Protocol):
    """What forward keeps for backward."""

    needs_input_grad: tuple[bool, ...]
    gradients: tuple[torch.Tensor | None, ...] | None
    dtypes: tuple[torch.dtype | None, ...]


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        chunk_tokens: int,
        ignore: int,
    ) -> torch.Tensor:
        gradients = _Gradients(hidden, weight, bias, ctx.needs_input_grad)
        loss = torch.zeros((), device=hidden.device)
        for first in range(0, len(hidden), chunk_tokens):
            rows = slice(first, first + chunk_tokens)
            log_probabilities = _log_probabilities(hidden[rows], weight, bias)
            loss += _loss(log_probabilities, labels[rows], ignore)
            gradients.add(rows, _logits_gradient(log_probabilities, labels[rows], ignore))
            del log_probabilities
        ctx.gradients = gradients.found()
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradients of this loss were used up by the first backward pass")
        # Scaled in fp32, in place: a loss scale rounded to 16 bits would scale the whole gradient wrongly.
        scaled = [
            None if gradient is None else gradient.mul_(upstream).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None)


class _Gradients:
    """Gradients of the summed loss, chunk by chunk. Matrices of 16 bits are multiplied as such, except fp16: without
    the loss scale, which is not known yet, small gradients would vanish in it."""

    def __init__(
        self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, wanted: tuple[bool, ...]
    ) -> None:
        dtype = torch.float32 if hidden.dtype == torch.float16 else hidden.dtype
        self._inputs, self._weight = hidden, weight.to(dtype)
        self._hidden = torch.empty_like(hidden, dtype=dtype) if wanted[0] else None
        self._weights = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
        self._biases = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wanted[2] else None

    def add(self, rows: "slice[int]", of_logits: torch.Tensor) -> None:
        """`of_logits`: fp32 [rows, vocabulary]."""
        if self._biases is not None:
            self._biases += of_logits.sum(0)
        of_logits = of_logits.to(self._weight.dtype)
        if self._hidden is not None:
            torch.mm(of_logits, self._weight, out=self._hidden[rows])
        if self._weights is None:
            return
        inputs = self._inputs[rows].to(self._weight.dtype)
        if inputs.dtype == torch.float32:
            self._weights.addmm_(of_logits.t(), inputs)
        else:
            self._weights += torch.mm(of_logits.t(), inputs)

    def found(self) -> tuple[torch.Tensor | None, ...]:
        """Of hidden states, weight and bias, in fp32; None if none is wanted."""
        return None if self._hidden is None else self._hidden.float(), self._weights, self._biases


def _log_probabilities(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """fp32 [rows, vocabulary]."""
    return torch.log_softmax(functional.linear(hidden, weight, bias).float(), -1)


def _loss(log_probabilities: torch.Tensor, labels: torch.Tensor, ignore: int) -> torch.Tensor:
    return functional.nll_loss(log_probabilities, labels, ignore_index=ignore, reduction="sum")


def _logits_gradient(log_probabilities: torch.Tensor, labels: torch.Tensor, ignore: int) -> torch.Tensor:
    """Softmax minus one at the label, 0 in rows without one (in place of `log_probabilities`). Every row is written at
    one place, so that this is deterministic on GPUs too."""
    none = labels == ignore
    gradient = log_probabilities.exp_()
    gradient[torch.arange(len(labels), device=labels.device), labels.masked_fill(none, 0)] -= 1.0
    return gradient.masked_fill_(none[:, None], 0.0)


class ChunkedHead(nn.Linear):
    """A model's output head that gives the loss in place of the logits while labels are set.

    The loss is computed inside the module's call because ZeRO stage 3 has the weight in one piece only there.
    """

    def __init__(self, plain: nn.Linear, chunk_tokens: int, ignore: int) -> None:
        """Takes the place of `plain`, with its very parameters."""
        super().__init__(plain.in_features, plain.out_features, plain.bias is not None, device="meta")
        self.weight, self.bias = plain.weight, plain.bias
        self.chunk_tokens, self.ignore = chunk_tokens, ignore
        self._labels: torch.Tensor | None = None

    @contextmanager
    def scoring(self, labels: torch.Tensor) -> Iterator[None]:
        """Context in which a call gives the summed loss against `labels` [n, width] for hidden states [n, width, f]."""
        self._labels = labels
        try:
            yield
        finally:
            self._labels = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # the name of nn.Linear's
        """Logits; with labels, a float32 scalar."""
        if self._labels is None:
            return super().forward(input)
        hidden = input.reshape(-1, self.in_features)
        return chunked_cross_entropy(
            hidden, self.weight, self.bias, self._labels.reshape(-1), self.chunk_tokens, self.ignore
        )


def install_chunked_head(model: "PreTrainedModel", chunk_tokens: int, ignore: int) -> ChunkedHead | None:
    """Put a `ChunkedHead` in the place of the model's output head. None, and the model as it is, if its logits are not
    just that linear layer's output."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or any(getattr(model.config, name, None) for name in SCALED_LOGITS):
        return None
    name = next(name for name, module in model.named_modules() if module is head)
    chunked = ChunkedHead(head, chunk_tokens, ignore)
    chunked.train(head.training)
    model.set_submodule(name, chunked)
    return chunked
