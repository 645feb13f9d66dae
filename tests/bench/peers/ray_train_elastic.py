"""Stock elastic Ray Train v2 with DeepSpeed ZeRO on a cluster of nodes on this machine, for somebody to break.

Written as Ray's guides show it: `ScalingConfig(num_workers=(least, most))`, a checkpoint every few steps through
`ray.train.report`, all timeouts at their defaults. Where the world size has changed, DeepSpeed cannot load its own
checkpoint: rank 0 then converts it to a universal one first, in its own process.

Writes below `--directory`: `nodes.json` (process id of each node's raylet), `ranks-<attempt>/<rank>` (process id of
each worker), `events.jsonl` (rank 0: `enter`, `ready` with the seconds of the restore, and every `step`, with Unix
times; an attempt is one start of the worker group). A file `add-nodes` there asks for so many new nodes.
"""

import argparse
import contextlib
import ctypes
import json
import signal
import tempfile
import threading
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1


def train_loop(config: dict) -> None:
    import deepspeed
    import ray.train
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    entered = time.time()
    directory, context = Path(config["directory"]), ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    attempt = announce(directory, rank)
    note = writer(directory / "events.jsonl" if rank == 0 else None, attempt, world)
    note("enter", entered)
    with contextlib.ExitStack() as stack:
        start = time.perf_counter()
        found, universal = checkpoint_to_load(stack, directory, rank, world)
        restore_s = time.perf_counter() - start
        torch.manual_seed(0)
        options = {"attn_pdrop": 0, "resid_pdrop": 0, "embd_pdrop": 0, "use_cache": False}
        model = GPT2LMHeadModel(GPT2Config(**config["model"], **options))
        settings = deepspeed_config(config, world, universal)
        engine, *_ = deepspeed.initialize(model=model, config=settings, model_parameters=model.parameters())
        start = time.perf_counter()
        if (
            found is not None
            and engine.load_checkpoint(str(found), tag="universal" if universal else "state")[0] is None
        ):
            raise RuntimeError(f"DeepSpeed loaded nothing from {found}")
        restore_s += time.perf_counter() - start
    step = engine.global_steps
    note("ready", time.time(), step=step, restore_s=restore_s)
    while step < config["steps"]:
        generator = torch.Generator().manual_seed(step)
        shape = (config["global_batch"], config["sequence_length"])
        ids = torch.randint(config["model"]["vocab_size"], shape, generator=generator).chunk(world)[rank]
        loss = engine(input_ids=ids, labels=ids).loss
        engine.backward(loss)
        engine.step()
        step += 1
        note("step", time.time(), step=step, loss=float(loss))
        if step % config["checkpoint_every"] == 0:
            with tempfile.TemporaryDirectory(dir=directory) as folder:
                engine.save_checkpoint(folder, tag="state")
                torch.distributed.barrier()
                ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(folder))


def announce(directory: Path, rank: int) -> str:
    """Agree on a name for this start of the group and leave our process id under it."""
    import os

    import torch

    name = [f"{time.time():.3f}" if rank == 0 else None]
    torch.distributed.broadcast_object_list(name)
    folder = directory / f"ranks-{name[0]}"
    folder.mkdir(exist_ok=True)
    (folder / str(rank)).write_text(str(os.getpid()))
    return str(name[0])


def writer(path: Path | None, attempt: str, world: int):
    """A function that appends an event, or does nothing."""

    def note(event: str, at: float, **fields: float) -> None:
        if path is not None:
            line = json.dumps({"event": event, "time_s": at, "attempt": attempt, "world": world, **fields})
            with path.open("a") as file:
                file.write(line + "\n")

    return note


def checkpoint_to_load(stack: contextlib.ExitStack, directory: Path, rank: int, world: int) -> tuple[Path | None, bool]:
    """Where DeepSpeed finds a checkpoint that fits this world size (None: there is none), and whether universal."""
    import ray.train
    import torch

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None, False
    found = Path(stack.enter_context(checkpoint.as_directory()))
    if len(list((found / "state").glob("*_optim_states.pt"))) == world:
        return found, False
    from deepspeed.checkpoint import ds_to_universal

    target = directory / f"universal-{found.name}-{world}"
    if rank == 0:
        target.mkdir()
        options = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False}
        folders = {"input_folder": str(found / "state"), "output_folder": str(target / "universal")}
        ds_to_universal.main(argparse.Namespace(**folders, **options, strict=True, inject_missing_state=True))
    torch.distributed.barrier()
    return target, True


def deepspeed_config(config: dict, world: int, universal: bool) -> dict:
    return {
        "train_batch_size": config["global_batch"],
        "train_micro_batch_size_per_gpu": config["global_batch"] // world,
        "gradient_accumulation_steps": 1,
        "optimizer": {"type": "AdamW", "params": {"torch_adam": True, "lr": 1e-3}},
        "zero_optimization": {"stage": config["stage"]},
        "gradient_clipping": 1.0,
        "steps_per_print": 2**31 - 1,
        "checkpoint": {"load_universal": universal},
    }


def start_nodes(cluster, directory: Path, count: int) -> None:
    """Add nodes of one CPU each and write down their raylets' process ids."""
    path = directory / "nodes.json"
    known = json.loads(path.read_text()) if path.exists() else []
    for _ in range(count):
        node = cluster.add_node(num_cpus=1)
        known += [info.process.pid for info in node.all_processes["raylet"]]
    path.with_suffix(".new").write_text(json.dumps(known))
    path.with_suffix(".new").rename(path)


def add_nodes_when_asked(cluster, directory: Path, training: threading.Thread) -> None:
    """Until the training ends. In the main thread: Ray starts nodes nowhere else, and they die with their thread."""
    request = directory / "add-nodes"
    while training.is_alive():
        if request.exists():
            count = int(request.read_text())
            request.unlink()
            start_nodes(cluster, directory, count)
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--config", type=json.loads, required=True, help="what the train loop needs")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--least", type=int, required=True)
    args = parser.parse_args()
    # The nodes end with us (Ray binds them to this process), and we with whoever started us.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    import ray
    from ray.cluster_utils import Cluster
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    # The head only leads: the driver, the controller and the coordinator live there, no worker does.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    start_nodes(cluster, args.directory, args.nodes)
    ray.init(address=cluster.address, log_to_driver=False)
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={**args.config, "directory": str(args.directory)},
        scaling_config=ScalingConfig(num_workers=(args.least, args.nodes)),
        run_config=RunConfig(
            storage_path=str(args.directory / "storage"), name="peer", failure_config=FailureConfig(max_failures=-1)
        ),
    )
    training = threading.Thread(target=trainer.fit, daemon=True)
    training.start()
    add_nodes_when_asked(cluster, args.directory, training)


if __name__ == "__main__":
    main()
