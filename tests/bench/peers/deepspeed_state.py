"""What the peers do with the state of a GPT-2 under ZeRO: save it, convert it, load it. For `torch.distributed.run`.

`stall`   trains a step, then saves several times with `engine.save_checkpoint` and with torch's DCP `async_save`.
`save`    trains a step and saves once with `engine.save_checkpoint`.
`convert` DeepSpeed's own `ds_to_universal`, in one plain process.
`load`    builds an engine and loads: a universal checkpoint at any world size, a plain one at its own.

Each prints one JSON line (rank 0).
"""

import argparse
import faulthandler
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path

SEQUENCE_LENGTH = 64
TAG = "state"
UNIVERSAL = "universal"


def make_engine(args: argparse.Namespace, universal: bool = False):
    """A DeepSpeed engine for the model; its state is there (one step is trained) unless it is about to be loaded."""
    import deepspeed
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    deepspeed.init_distributed(dist_backend="gloo")
    torch.manual_seed(1 if universal else 0)
    model = GPT2LMHeadModel(GPT2Config(**args.model, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0, use_cache=False))
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "optimizer": {"type": "AdamW", "params": {"torch_adam": True, "lr": 1e-4}},
        "zero_optimization": {"stage": args.stage},
        "gradient_clipping": 1.0,
        "steps_per_print": 2**31 - 1,
        "checkpoint": {"load_universal": universal},
    }
    engine, *_ = deepspeed.initialize(model=model, config=config, model_parameters=model.parameters())
    return engine


def train_step(engine) -> None:
    import torch

    generator = torch.Generator().manual_seed(torch.distributed.get_rank())
    vocabulary = engine.module.config.vocab_size
    ids = torch.randint(vocabulary, (1, SEQUENCE_LENGTH), generator=generator)
    engine.backward(engine(input_ids=ids, labels=ids).loss)
    engine.step()


def flat_partitions(engine) -> dict:
    """This rank's masters and moments: what a checkpoint of ZeRO must hold. Keys carry the rank."""
    import torch

    rank, optimizer = torch.distributed.get_rank(), engine.optimizer
    stage_3 = engine.zero_optimization_stage() == 3
    flats = optimizer.fp32_partitioned_groups_flat if stage_3 else optimizer.single_partition_of_fp32_groups
    state = {}
    for index, flat in enumerate(flats):
        state[f"rank{rank}.{index}.master"] = flat.detach()
        for kind in ("exp_avg", "exp_avg_sq"):
            state[f"rank{rank}.{index}.{kind}"] = optimizer.optimizer.state[flat][kind]
    return state


def norms(engine) -> dict[str, float]:
    """Norm of all masters and moments over all ranks: equal before and after a complete restore at any world size."""
    import torch

    total = torch.zeros(3, dtype=torch.float64)
    for key, flat in flat_partitions(engine).items():
        index = ("master", "exp_avg", "exp_avg_sq").index(key.rpartition(".")[2])
        total[index] += sum(float(part.double().square().sum()) for part in flat.split(2**22))
    torch.distributed.all_reduce(total)
    return dict(zip(("master", "exp_avg", "exp_avg_sq"), total.sqrt().tolist(), strict=True))


def slowest(seconds: float) -> float:
    """The largest of all ranks' values: training goes on when the last one is done."""
    import torch

    value = torch.tensor(seconds, dtype=torch.float64)
    torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX)
    return float(value)


def peak_rss_bytes() -> list[int]:
    """Of every rank, since its start."""
    import torch

    peaks: list = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(peaks, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return peaks


def save(args: argparse.Namespace) -> dict:
    import torch

    engine = make_engine(args)
    train_step(engine)
    torch.distributed.barrier()
    start = time.perf_counter()
    engine.save_checkpoint(str(args.directory), tag=TAG)
    seconds = slowest(time.perf_counter() - start)
    return {"save_s": seconds, "norms": norms(engine), "world": torch.distributed.get_world_size()}


def stall(args: argparse.Namespace) -> dict:
    import torch

    engine = make_engine(args)
    train_step(engine)
    state = flat_partitions(engine)
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
    figures: dict[str, list[float]] = {name: [] for name in ("save_checkpoint_s", "async_save_s", "background_s")}
    figures |= {"async_save_kept_stager_s": [], "background_kept_stager_s": []}
    group = torch.distributed.new_group(backend="gloo")
    kept = new_stager()
    for index in range(args.rounds):
        print(f"round {index} after {time.process_time():.0f} s of CPU time", file=sys.stderr, flush=True)
        figures["save_checkpoint_s"].append(timed_save(engine, args.directory / "deepspeed"))
        for stager, suffix in ((None, ""), (kept, "_kept_stager")):
            stalled, background = timed_async_save(state, args.directory / "dcp", group, stager)
            figures[f"async_save{suffix}_s"].append(stalled)
            figures[f"background{suffix}_s"].append(background)
        train_step(engine)
    kept.close()
    state_bytes = sum(flat.numel() * flat.element_size() for flat in state.values())
    return {**figures, "state_bytes": state_bytes, "parameters": parameters}


def new_stager():
    """A stager the user keeps, so that its buffers are reused by the next save."""
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    return DefaultStager(
        StagingOptions(
            use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False
        )
    )


def timed_save(engine, directory: Path) -> float:
    import torch

    torch.distributed.barrier()
    start = time.perf_counter()
    engine.save_checkpoint(str(directory), tag=TAG)
    seconds = slowest(time.perf_counter() - start)
    clear(directory)
    return seconds


def timed_async_save(state: dict, directory: Path, group, stager) -> tuple[float, float]:
    """Seconds until training may go on, and until the checkpoint lies on disk."""
    import torch
    import torch.distributed.checkpoint as dcp

    torch.distributed.barrier()
    start = time.perf_counter()
    done = dcp.async_save(state, checkpoint_id=directory, process_group=group, async_stager=stager)
    stalled = time.perf_counter() - start
    done.result()
    background = time.perf_counter() - start
    figures = slowest(stalled), slowest(background)
    clear(directory)
    return figures


def clear(directory: Path) -> None:
    import torch

    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        shutil.rmtree(directory)
    torch.distributed.barrier()


def convert(args: argparse.Namespace) -> dict:
    from deepspeed.checkpoint import ds_to_universal

    start = time.perf_counter()
    ds_to_universal.main(
        argparse.Namespace(
            input_folder=str(args.directory / TAG),
            output_folder=str(args.directory / UNIVERSAL),
            num_extract_workers=4,  # the tool's defaults
            num_merge_workers=2,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
    )
    return {"convert_s": time.perf_counter() - start}


def load(args: argparse.Namespace) -> dict:
    import torch

    engine = make_engine(args, universal=args.universal)
    before = peak_rss_bytes()
    torch.distributed.barrier()
    start = time.perf_counter()
    path, _ = engine.load_checkpoint(str(args.directory), tag=UNIVERSAL if args.universal else TAG)
    seconds = slowest(time.perf_counter() - start)
    if path is None:
        raise RuntimeError(f"DeepSpeed loaded nothing from {args.directory}")
    peaks = {"peak_rss_before_bytes": before, "peak_rss_bytes": peak_rss_bytes()}
    return {"load_s": seconds, "norms": norms(engine), "world": torch.distributed.get_world_size(), **peaks}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("stall", "save", "convert", "load"))
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--stage", type=int, choices=(1, 2, 3), required=True)
    parser.add_argument("--model", type=json.loads, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--universal", action="store_true")
    parser.add_argument("--limit-s", type=float, required=True, help="print every thread's stack and end after this")
    args, _ = parser.parse_known_args()
    faulthandler.dump_traceback_later(args.limit_s, exit=True)
    result = {"stall": stall, "save": save, "convert": convert, "load": load}[args.what](args)
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps(result), flush=True)
    if args.what != "convert":
        import torch

        torch.distributed.barrier()
        os._exit(0)  # gloo's threads abort the process at times when Python takes it down in order


if __name__ == "__main__":
    main()
