"""Steps of a real engine with and without a trial before them."""

from types import SimpleNamespace
from typing import Any

from tests.cluster.memory_steps import MODEL, spec_of

STEPS, LENGTH = 3, 8


def losses(stage: int, precision: str, accumulation: int, trial: bool) -> list[float]:
    """Losses and gradient norms of a few steps."""
    import torch
    import torch.distributed as dist
    from transformers import GPT2Config, GPT2LMHeadModel

    from orchestrator.train.engine.deepspeed_config import EngineShape
    from orchestrator.train.engine.engine import Stepper, build_engine, destroy_engine, set_learning_rate
    from orchestrator.train.engine.trial import try_longest
    from orchestrator.train.models.tasks import CausalLM, summed_cross_entropy

    workers, spec = dist.get_world_size(), spec_of(stage, precision, False)
    torch.manual_seed(0)
    # With dropout: random numbers that a trial uses up would be missed.
    model: Any = GPT2LMHeadModel(GPT2Config(**MODEL, bos_token_id=0, eos_token_id=0)).train()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    engine = build_engine(spec, model, EngineShape(workers, 2, accumulation, "cpu"))
    del model
    torch.manual_seed(dist.get_rank() + 5)
    if trial:
        context: Any = SimpleNamespace(
            spec=spec,
            engine=engine,
            device=torch.device("cpu"),
            session=SimpleNamespace(world_size=workers),
            plan=SimpleNamespace(micro_batch=2),
            dataset=SimpleNamespace(manifest=SimpleNamespace(sequence_length=LENGTH)),
            size=SimpleNamespace(parameters=parameters),
            task=CausalLM(pad_id=0),
        )
        try_longest(context)
    stepper, found = Stepper(spec, engine, workers), []
    for _ in range(STEPS):
        set_learning_rate(engine, 1e-2)
        for _ in range(accumulation):
            tokens = torch.randint(0, MODEL["vocab_size"], (2, LENGTH))
            loss = summed_cross_entropy(engine(input_ids=tokens).logits, tokens)
            found.append(float(loss.detach()))
            stepper.backward(loss, 32)
            stepper.step()
        found.append(stepper.grad_norm())
    del stepper
    destroy_engine(engine)
    return found
