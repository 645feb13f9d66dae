"""Real torch.distributed workers for tests: processes that import once and form groups of any size again and again."""

import contextlib
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.storage.retention import Rule
from orchestrator.domain.events import EventBody
from tests.cluster.forked import cpu_forkserver
from tests.events import recorded

GROUP_TIMEOUT = timedelta(seconds=20)
GLOBAL_BATCH = 12
VOCABULARY = 101


class WorkerDied(Exception):
    """A worker process ended without an answer."""


class WorkerRaised(Exception):
    """A worker raised; the text is its traceback."""


class Gang:
    """Up to `size` worker processes. `run` has the first few of them form a process group and call a function."""

    def __init__(self, size: int, directory: Path) -> None:
        self._directory = directory
        self._groups = 0
        context = cpu_forkserver()
        self._connections: list[Connection] = []
        self.processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank), daemon=True)
            process.start()
            theirs.close()
            self._connections.append(ours)
            self.processes.append(process)

    def run(self, world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Results by rank. Raises WorkerRaised with the first traceback that came back."""
        answers = self.attempt(world_size, function, *arguments)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def attempt(self, world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Like `run`, but a worker's exception or death is its answer."""
        self._groups += 1
        store = str(self._directory / f"group-{self._groups}")
        for connection in self._connections[:world_size]:
            connection.send((world_size, store, function, arguments))
        answers: list[Any] = []
        for connection in self._connections[:world_size]:
            try:
                ok, value = connection.recv()
                answers.append(value if ok else WorkerRaised(value))
            except (EOFError, ConnectionResetError) as error:
                answers.append(WorkerDied(str(error)))
        return answers

    def close(self) -> None:
        """End the processes."""
        for process, connection in zip(self.processes, self._connections, strict=True):
            process.kill()
            process.join()
            connection.close()


def _serve(connection: Connection, rank: int) -> None:
    import torch
    import torch.distributed as dist

    from orchestrator.train.collectives.rendezvous import leave_process_group

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            world_size, store, function, arguments = connection.recv()
        except EOFError:
            return
        try:
            os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK="0")
            dist.init_process_group(
                "gloo",
                store=dist.FileStore(store, world_size),
                rank=rank,
                world_size=world_size,
                timeout=GROUP_TIMEOUT,
            )
            connection.send((True, function(*arguments)))
        except Exception:  # noqa: BLE001  # whatever it was, it is the answer
            connection.send((False, traceback.format_exc()))
        finally:
            leave_process_group()


@dataclass(frozen=True)
class Setup:
    """How an engine is built."""

    stage: int = 0
    precision: str = "fp32"
    accumulation: int = 1
    seed: int = 0
    frozen: bool = False
    """Freeze the embeddings of positions."""
    zero: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=lambda: {"torch_adam": True})
    model: dict[str, Any] = field(default_factory=dict)
    prepare: str = ""
    """Python that a user's script would run on `model` before it builds the engine."""

    def but(self, **changes: Any) -> "Setup":
        return replace(self, **changes)


class LocalSession:
    """A `Session` on a shared file system."""

    shares_files = True

    def __init__(self) -> None:
        self.events: list[tuple[type[EventBody], dict[str, Any]]] = []

    def report_event(self, body: EventBody) -> None:
        self.events.append(recorded(body))

    def progress(self) -> None:
        """Nobody watches."""

    def fetch(self, path: str) -> Path:
        if not Path(path).exists():
            raise FileNotFoundError(path)
        return Path(path)

    def store(self, local: Path, path: str) -> None:
        raise AssertionError("nothing is copied on a shared file system")


def build(setup: Setup, restored: bool = False) -> Any:
    """A GPT-2 of odd sizes with tied embeddings, a persistent buffer, and two optimizer groups. Collective.

    `restored`: as the product builds it before a restore, without weights and without sending any.
    """
    import deepspeed
    import torch
    import torch.distributed as dist
    from transformers import GPT2Config, GPT2LMHeadModel

    from orchestrator.train.engine.engine import _no_operator_probe, _nothing_sent, import_deepspeed
    from orchestrator.train.models.architectures import erase_weights

    import_deepspeed("cpu")
    sizes: dict[str, Any] = {"n_layer": 2, "n_embd": 30, "n_head": 2, "vocab_size": VOCABULARY, "n_positions": 33}
    dropout = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    torch.manual_seed(setup.seed)
    model = GPT2LMHeadModel(GPT2Config(use_cache=False, **{**sizes, **dropout, **setup.model}))
    model.register_buffer("steps_seen", torch.full((3,), setup.seed, dtype=torch.int64))
    if setup.frozen:
        model.transformer.wpe.weight.requires_grad_(False)
    exec(setup.prepare, {"model": model, "torch": torch})
    if restored:
        erase_weights(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
    ]
    world_size = dist.get_world_size()
    config = {
        "train_batch_size": GLOBAL_BATCH,
        "train_micro_batch_size_per_gpu": GLOBAL_BATCH // world_size // setup.accumulation,
        "gradient_accumulation_steps": setup.accumulation,
        "zero_optimization": {"stage": setup.stage, **setup.zero},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, **setup.optimizer}},
        "gradient_clipping": 1.0,
        "steps_per_print": 2**31 - 1,
        **({"bf16": {"enabled": True}} if setup.precision == "bf16" else {}),
        **setup.config,
    }
    with _no_operator_probe(deepspeed), _nothing_sent(deepspeed) if restored else contextlib.nullcontext():
        return deepspeed.initialize(model=model, config=config, model_parameters=groups)[0]


def train(engine: Any, first_step: int, steps: int) -> list[float]:
    """Losses of steps [first_step, first_step + steps): the mean over the global batch, the same on every rank."""
    import torch
    import torch.distributed as dist

    rank, world_size = dist.get_rank(), dist.get_world_size()
    share = GLOBAL_BATCH // world_size
    losses = []
    for step in range(first_step, first_step + steps):
        draws = torch.Generator().manual_seed(1000 + step % 4)
        batch = torch.randint(0, VOCABULARY, (GLOBAL_BATCH, 16), generator=draws)[rank * share : (rank + 1) * share]
        total = torch.zeros(1)
        for part in batch.chunk(engine.gradient_accumulation_steps()):
            loss = engine(input_ids=part, labels=part).loss
            engine.backward(loss)
            engine.step()
            total += loss.detach().float() / engine.gradient_accumulation_steps()
        engine.module.get_buffer("steps_seen").add_(1)
        dist.all_reduce(total)
        losses.append(float(total / world_size))
    return losses


def train_and_save(setup: Setup, run_dir: str, before: int, after: int) -> list[float]:
    """Losses of `before` steps, a checkpoint, and `after` steps more."""
    from orchestrator.train.engine.engine import destroy_engine
    from orchestrator.train.snapshot.checkpointing import SaveProgress, save_checkpoint

    engine = build(setup)
    losses = train(engine, 0, before)
    progress = SaveProgress(before, before * GLOBAL_BATCH, {"note": "kept"})
    save_checkpoint(engine, LocalSession(), run_dir, before, progress, Rule(2))  # type: ignore[arg-type]
    losses += train(engine, before, after)
    destroy_engine(engine)
    return losses


def restore_and_train(setup: Setup, checkpoint: str, steps: int) -> tuple[Any, list[float], list[int]]:
    """What `load_checkpoint` says, the losses after it, and the restored buffer."""
    from orchestrator.train.engine.engine import destroy_engine
    from orchestrator.train.snapshot.checkpointing import load_checkpoint

    engine = build(setup, restored=True)
    progress = load_checkpoint(engine, LocalSession(), checkpoint)  # type: ignore[arg-type]
    seen = engine.module.get_buffer("steps_seen").tolist()
    losses = train(engine, progress.step, steps)
    destroy_engine(engine)
    return progress, losses, seen


def engines_left(setup: Setup) -> int:
    """How many engines there are in this process after one has trained and was destroyed."""
    import gc

    from deepspeed.runtime.engine import DeepSpeedEngine

    from orchestrator.train.engine.engine import destroy_engine

    engine = build(setup)
    train(engine, 0, 4)  # from the third step on DeepSpeed caches which parameters a module releases
    destroy_engine(engine)
    del engine
    gc.collect()
    return sum(isinstance(found, DeepSpeedEngine) for found in gc.get_objects())


def states_after_training_on(setup: Setup) -> tuple[Any, Any]:
    """A digest of the state after four steps, looked up by what was learned of the engine after one, and anew."""
    import torch

    from orchestrator.train.engine.engine import destroy_engine
    from orchestrator.train.zero.zero_state import CapturedState, EngineState, capture

    def digest(state: CapturedState) -> Any:
        flats = [(flat.kind, flat.fragments, flat.tensor.numel(), flat.tensor.double().sum()) for flat in state.flats]
        return repr((flats, state.tensors, state.tied, state.groups, state.counters, state.loss_scaler, state.rng))

    engine = build(setup)
    train(engine, 0, 1)
    known = EngineState(engine)
    train(engine, 1, 3)
    # A module may put another tensor into the place of its buffer.
    engine.module.steps_seen = engine.module.steps_seen + torch.ones(3, dtype=torch.int64)
    found = digest(known.capture()), digest(capture(engine))
    destroy_engine(engine)
    return found
