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


def tokenised(files: list[str], vocab_size: int, length: int, path: Path) -> Path:
    """Trains a tokenizer on the files and packs their tokens into samples of one length, as a script would."""
    import numpy as np
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train(files, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<|end|>"], show_progress=False))
    texts = [Path(file).read_text(encoding="utf-8", errors="replace") for file in files]
    ids = [token for encoded in tokenizer.encode_batch(texts) for token in (*encoded.ids, 0)]
    np.save(path, np.asarray(ids[: len(ids) // length * length], dtype=np.int64).reshape(-1, length))
    return path


def main() -> None:
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    parser = argparse.ArgumentParser()
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tokens", type=Path)
    source.add_argument("--files", nargs="+", help="text that the script tokenises first")
    parser.add_argument("--joined", action="store_true", help="on the cluster of the job that runs the script")
    parser.add_argument("--model", type=json.loads, required=True)
    parser.add_argument("--config", type=json.loads, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--storage", type=Path, required=True)
    args = parser.parse_args()
    mark = args.storage / "first-step.json"
    ray.init() if args.joined else ray.init(num_cpus=args.workers + 1)
    tokens = args.tokens
    if tokens is None:
        sizes = args.model["vocab_size"], args.model["n_positions"]
        tokens = tokenised(args.files, *sizes, args.storage / "tokens.npy")
    TorchTrainer(
        train_loop,
        train_loop_config={
            "tokens": str(tokens),
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
