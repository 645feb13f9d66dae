"""Steps of a real DeepSpeed engine whose tensors are counted."""

import gc
import time
from dataclasses import replace
from typing import Any

from orchestrator.spec.job import JobSpec
from tests.live_memory import Live

MODEL = {"n_layer": 2, "n_embd": 128, "n_head": 2, "n_positions": 8, "vocab_size": 512}
BUCKET = 100_000
TOKENS = 64
LLAMA = {
    "hidden_size": 128,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 352,
    "vocab_size": 2048,
    "max_position_embeddings": TOKENS,
}


SETTLED_S = 0.5
"""For gloo's threads to let go of what they have sent."""


def measured(stage: int, precision: str, overlap: bool = False) -> tuple[int, int, int, Any]:
    """Bytes that stay between steps, most in a backward pass (which reduces gradients), most in a step's update, beside
    the formula's figures."""
    import torch
    import torch.distributed as dist
    from transformers import GPT2Config, GPT2LMHeadModel

    from orchestrator.planner.model_shape import model_shape
    from orchestrator.planner.zero_memory import zero_memory
    from orchestrator.train.engine.deepspeed_config import EngineShape
    from orchestrator.train.engine.engine import Stepper, build_engine, destroy_engine

    workers, spec, live = dist.get_world_size(), spec_of(stage, precision, overlap), Live()
    with live:
        model = GPT2LMHeadModel(GPT2Config(**MODEL, bos_token_id=0, eos_token_id=0))
        parameters = sum(parameter.numel() for parameter in model.parameters())
        engine = build_engine(spec, model, EngineShape(workers, 1, 2, "cpu"))
        del model
        stepper = Stepper(spec, engine, workers)
        for micro_step in range(4):  # two steps: the first one allocates the moments
            loss = engine(input_ids=torch.zeros((1, 4), dtype=torch.long)).logits.float().sum()
            live.reset_peak()
            stepper.backward(loss, 1)
            del loss
            stays, backward = _settled(live) if micro_step == 3 else 0, live.peak_bytes
            live.reset_peak()
            stepper.step()
            update = live.peak_bytes
    del stepper
    destroy_engine(engine)
    shape = replace(model_shape({**MODEL, "model_type": "gpt2"}, MODEL["vocab_size"]), parameters=parameters)
    return stays, backward, update, zero_memory(spec, shape, workers)


def peak(stage: int, micro_batch: int, checkpointing: bool = False) -> tuple[int, int]:
    """Most bytes at a time in a step of a Llama in bf16 with the real loss, and what the planner expects, apart from
    what only a GPU has."""
    import torch
    import torch.distributed as dist
    from transformers import LlamaConfig, LlamaForCausalLM

    from orchestrator.planner.device_memory import Assumptions, device_need
    from orchestrator.planner.model_shape import model_shape
    from orchestrator.train.engine.deepspeed_config import EngineShape
    from orchestrator.train.engine.engine import Stepper, build_engine, destroy_engine
    from orchestrator.train.models.tasks import summed_cross_entropy

    workers, live = dist.get_world_size(), Live()
    spec = spec_of(stage, "bf16", False, checkpointing)
    with live:
        model = LlamaForCausalLM(LlamaConfig(**LLAMA, bos_token_id=0, eos_token_id=0))
        model.config.use_cache = False
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        parameters = sum(parameter.numel() for parameter in model.parameters())
        engine = build_engine(spec, model, EngineShape(workers, micro_batch, 2, "cpu"))
        del model
        stepper = Stepper(spec, engine, workers)
        tokens = torch.zeros((micro_batch, TOKENS), dtype=torch.long)
        for micro_step in range(4):
            if micro_step == 2:
                live.reset_peak()
            loss = summed_cross_entropy(engine(input_ids=tokens).logits, tokens)
            stepper.backward(loss, 1)
            del loss
            stepper.step()
    del stepper
    destroy_engine(engine)
    shape = replace(model_shape({**LLAMA, "model_type": "llama"}, LLAMA["vocab_size"]), parameters=parameters)
    apart = Assumptions(context_bytes=0, communicator_bytes=0)
    return live.peak_bytes, device_need(spec, shape, workers, apart).total_bytes(micro_batch)


def spec_of(stage: int, precision: str, overlap: bool, checkpointing: bool = False) -> JobSpec:
    """A job whose buffers are as small as its model."""
    zero: dict[str, Any] = {"stage": stage}
    if stage:
        zero["deepspeed"] = {"zero_optimization": {"reduce_bucket_size": BUCKET, "overlap_comm": overlap}}
    if stage == 3:
        zero["deepspeed"]["zero_optimization"] |= {
            "stage3_max_live_parameters": 50_000,
            "stage3_max_reuse_distance": 50_000,
            "stage3_prefetch_bucket_size": 5_000,
            "stage3_param_persistence_threshold": 100,
        }
    train = {"steps": 1, "global_batch": 2, "lr": 1e-3, "precision": precision}
    return JobSpec.model_validate(
        {
            "name": "m",
            "model": {"architecture": "gpt2"},
            "tokenizer": {"train": {}},
            "data": {"sources": [{"files": ["x"]}], "sequence_length": TOKENS},
            "train": {**train, "activation_checkpointing": checkpointing},
            "zero": zero,
        }
    )


def _settled(live: Live) -> int:
    """What stays alive once the collectives' threads are done with it."""
    gc.collect()
    least, until_s = live.live_bytes, time.monotonic() + SETTLED_S
    while time.monotonic() < until_s:
        time.sleep(0.01)
        least = min(least, live.live_bytes)
    return least
