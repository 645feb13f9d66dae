"""A plain PyTorch training loop, one device, no library around it: bf16 autocast, fused AdamW, clipping.

Prints one JSON line: seconds of every step, peak memory of the device, and the last loss.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=Path, required=True, help=".npy of int64 [samples, length]")
    parser.add_argument("--model", type=json.loads, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()

    torch.manual_seed(0)
    device = torch.device(args.device)
    config = GPT2Config(**args.model, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0, use_cache=False)
    model = GPT2LMHeadModel(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens = np.load(args.tokens, mmap_mode="r")
    times = []
    for step in range(args.steps):
        start = time.perf_counter()
        first = step * args.batch % (len(tokens) - args.batch)
        ids = torch.from_numpy(np.ascontiguousarray(tokens[first : first + args.batch])).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = loss.item()
        times.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    print(json.dumps({"step_times_s": times, "peak_allocated_bytes": peak, "loss": value}), flush=True)


if __name__ == "__main__":
    main()
