"""A minimal stock Ray Train script with DeepSpeed, as Ray's guide shows it.

Prints one JSON line: Unix time at which the first optimizer step had finished.
"""

import argparse
import json
import time
from pathlib import Path


def train_loop(config: dict) -> None:
    import deepspeed
    import numpy as np
    import ray.train
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    context = ray.train.get_context()
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**config["model"], attn_pdrop=0, resid_pdrop=0, embd_pdrop=0, use_cache=False))
    engine, *_ = deepspeed.initialize(model=model, config=config["config"], model_parameters=model.parameters())
    tokens = np.load(config["tokens"], mmap_mode="r")
    batch = config["config"]["train_batch_size"]
    rank, share = context.get_world_rank(), batch // context.get_world_size()
    ids = torch.from_numpy(np.ascontiguousarray(tokens[rank * share : (rank + 1) * share]))
    loss = engine(input_ids=ids, labels=ids).loss
    engine.backward(loss)
    engine.step()
    if rank == 0:
        Path(config["mark"]).write_text(json.dumps({"first_step_time_s": time.time(), "loss": float(loss)}))
    ray.train.report({"loss": float(loss)})


def main() -> None:
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--model", type=json.loads, required=True)
    parser.add_argument("--config", type=json.loads, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--storage", type=Path, required=True)
    args = parser.parse_args()
    mark = args.storage / "first-step.json"
    ray.init(num_cpus=args.workers + 1)
    TorchTrainer(
        train_loop,
        train_loop_config={
            "tokens": str(args.tokens),
            "model": args.model,
            "config": args.config,
            "mark": str(mark),
        },
        scaling_config=ScalingConfig(num_workers=args.workers),
        run_config=RunConfig(storage_path=str(args.storage), name="peer"),
    ).fit()
    print(mark.read_text(), flush=True)


if __name__ == "__main__":
    main()
