"""The loop that training is compared with: the same model, precision and batch in plain PyTorch, nothing else."""

import json
import time
from statistics import median
from typing import Any

from orchestrator.domain.session import Session, TrainPlan, TrainResult

WARM_STEPS = 5


def train(session: Session, plan: TrainPlan) -> TrainResult:
    """Train on random tokens: 16-bit weights and gradients, fp32 masters and moments, a fused AdamW, clipping, the same
    number of micro steps. Tells the median of the tokens/s after some steps."""
    import torch

    from orchestrator.data.data_manifest import DataManifest
    from orchestrator.spec.job import JobSpec
    from orchestrator.train.models.architectures import build_model

    spec = JobSpec.model_validate_json(json.dumps(plan.spec))
    manifest = DataManifest.read(session.fetch(plan.data_dir))
    device = torch.device("cuda" if spec.resources.gpus_per_worker else "cpu")
    torch.set_float32_matmul_precision("high")
    model: Any = build_model(spec, manifest).to(device=device, dtype=torch.bfloat16)
    weights = list(model.parameters())
    masters = [weight.detach().float().clone() for weight in weights]
    sums = [torch.zeros_like(master) for master in masters]
    optimizer = torch.optim.AdamW(masters, lr=spec.train.lr, betas=spec.train.optimizer.betas, fused=True)
    shape = (plan.micro_batch, spec.data.sequence_length)
    seconds = []
    for _ in range(plan.total_steps):
        _wait(device)
        started_s = time.perf_counter()
        for _ in range(plan.accumulation):
            tokens = torch.randint(0, manifest.vocab_size, shape, device=device)
            model(input_ids=tokens, labels=tokens).loss.div(plan.accumulation).backward()
            torch._foreach_add_(sums, [weight.grad for weight in weights])
            for weight in weights:
                weight.grad = None
        for master, gradient in zip(masters, sums, strict=True):
            master.grad = gradient
        torch.nn.utils.clip_grad_norm_(masters, 1.0, foreach=True)
        optimizer.step()
        torch._foreach_copy_(weights_data(weights), masters)
        torch._foreach_zero_(sums)
        _wait(device)
        seconds.append(time.perf_counter() - started_s)
    tokens = plan.micro_batch * plan.accumulation * spec.data.sequence_length
    return TrainResult(plan.total_steps, True, facts={"tokens_per_s": tokens / median(seconds[WARM_STEPS:])})


def weights_data(weights: list[Any]) -> list[Any]:
    """The tensors behind parameters: copied into without autograd's notice."""
    return [weight.data for weight in weights]


def _wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
