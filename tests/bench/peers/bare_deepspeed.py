"""A bare DeepSpeed training script for `torch.distributed.run`: same model, same tokens, same DeepSpeed config.

Prints one JSON line at the end (rank 0): the seconds of every step.
"""

import argparse
import json
import os
import time
from pathlib import Path

import deepspeed
import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, object]]:
    decay = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    return [{"params": decay, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=Path, required=True, help=".npy of int64 [samples, length]")
    parser.add_argument("--model", type=json.loads, required=True)
    parser.add_argument("--config", type=json.loads, required=True)
    parser.add_argument("--steps", type=int, required=True)
    args, _ = parser.parse_known_args()

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    deepspeed.init_distributed(dist_backend="gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**args.model, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0, use_cache=False))
    engine, *_ = deepspeed.initialize(model=model, config=args.config, model_parameters=parameter_groups(model, 0.1))
    tokens = np.load(args.tokens, mmap_mode="r")
    batch = args.config["train_batch_size"]
    share = batch // world
    times = []
    for step in range(args.steps):
        start = time.perf_counter()
        first = (step * batch + rank * share) % (len(tokens) - batch)
        ids = torch.from_numpy(np.ascontiguousarray(tokens[first : first + share]))
        loss = engine(input_ids=ids, labels=ids).loss
        engine.backward(loss)
        engine.step()
        total = loss.detach().clone()
        torch.distributed.all_reduce(total)
        value = float(total) / world
        times.append(time.perf_counter() - start)
    if rank == 0:
        print(json.dumps({"step_times_s": times, "loss": value}), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
