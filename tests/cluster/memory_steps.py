"""Steps of a real DeepSpeed engine whose tensors are counted."""

import gc
import time
from dataclasses import replace
from typing import Any

from tests.live_memory import Live

MODEL = {"n_layer": 2, "n_embd": 128, "n_head": 2, "n_positions": 8, "vocab_size": 512}
BUCKET = 100_000


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
    from orchestrator.spec.job import JobSpec
    from orchestrator.train.deepspeed_config import EngineShape
    from orchestrator.train.engine import Stepper, build_engine, destroy_engine

    workers = dist.get_world_size()
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
    spec = JobSpec.model_validate(
        {
            "name": "m",
            "model": {"architecture": "gpt2"},
            "tokenizer": {"train": {}},
            "data": {"sources": [{"files": ["x"]}], "sequence_length": 8},
            "train": {"steps": 1, "global_batch": 2, "lr": 1e-3, "precision": precision},
            "zero": zero,
        }
    )
    live = Live()
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


def _settled(live: Live) -> int:
    """What stays alive once the collectives' threads are done with it."""
    gc.collect()
    least, until_s = live.live_bytes, time.monotonic() + SETTLED_S
    while time.monotonic() < until_s:
        time.sleep(0.01)
        least = min(least, live.live_bytes)
    return least
