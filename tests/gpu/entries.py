"""What ranks run besides training: entry points for single checks, called as a worker's own."""

import contextlib
import gc
import os
from collections.abc import Callable
from typing import Any

from orchestrator.domain.session import Session, TrainPlan, TrainResult

ASSERT_STEP = 6


def facts(session: Session, plan: TrainPlan) -> TrainResult:
    """Device, driver and versions, as this process finds them."""
    import deepspeed
    import torch
    import transformers

    found: dict[str, Any] = {
        "torch": torch.__version__,
        "deepspeed": deepspeed.__version__,
        "transformers": transformers.__version__,
        "cuda_build": torch.version.cuda,
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "available": torch.cuda.is_available(),
    }
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        found |= {
            "device": torch.cuda.get_device_name(),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
            "free_bytes": free,
            "total_bytes": total,
            "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        }
    return TrainResult(0, True, facts=found)


def failing_assertion(session: Session, plan: TrainPlan) -> TrainResult:
    """Train; at `ASSERT_STEP` a kernel of rank 1 refuses its input, as with a token id beyond the vocabulary."""
    import torch

    from orchestrator.train.models import tasks
    from orchestrator.train.worker import run_worker

    plain, calls = tasks.CausalLM.loss, 0

    def loss(task: Any, model: Any, batch: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if session.rank == 1 and calls == ASSERT_STEP * plan.accumulation:
            table = torch.zeros(4, device=batch.labels.device)
            beyond = torch.tensor([1_000_000], device=batch.labels.device)
            table.index_select(0, beyond)
        return plain(task, model, batch)

    with _replaced(tasks.CausalLM, "loss", loss):
        return run_worker(session, plan)


def paced(session: Session, plan: TrainPlan) -> TrainResult:
    """Train, at most twenty steps a second: what is done at a step does not come after the last one."""
    import time

    from orchestrator.train import step_loop
    from orchestrator.train.worker import run_worker

    plain = step_loop.TrainLoop._step

    def step(self: Any, number: int, feed: Any) -> Any:
        time.sleep(0.05)
        return plain(self, number, feed)

    with _replaced(step_loop.TrainLoop, "_step", step):
        return run_worker(session, plan)


def device_memory(session: Session, plan: TrainPlan) -> TrainResult:
    """Bytes that this process holds on its device between two generations."""
    import torch

    gc.collect()
    return TrainResult(0, True, facts={"reserved_bytes": torch.cuda.memory_reserved()})


@contextlib.contextmanager
def _replaced(owner: Any, name: str, function: Callable[..., Any]) -> Any:
    before = getattr(owner, name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        setattr(owner, name, before)


def state_digest(session: Session, plan: TrainPlan) -> TrainResult:
    """Train, and tell a digest of all state that is saved: of masters, moments, buffers, counters."""
    from dataclasses import replace

    from orchestrator.train import step_loop
    from orchestrator.train.worker import run_worker

    plain, digests = step_loop.TrainLoop.run, []

    def run(self: Any) -> Any:
        result = plain(self)
        digests.append(_digest(self._context.engine))
        return result

    with _replaced(step_loop.TrainLoop, "run", run):
        return replace(run_worker(session, plan), facts={"digest": digests[0]})


def _digest(engine: Any) -> str:
    """SHA-256 over every flat that a snapshot copies, on the host, and over the counters."""
    import hashlib

    import torch

    from orchestrator.train.zero.zero_state import EngineState

    state = EngineState(engine).capture()
    found = hashlib.sha256()
    for flat in state.flats:
        for fragment in flat.fragments:
            part = flat.tensor.detach().view(-1)[fragment.offset : fragment.offset + fragment.length]
            found.update(f"{fragment.name} {fragment.start}".encode())
            found.update(part.to("cpu").contiguous().view(torch.uint8).numpy().tobytes())
    found.update(repr((state.counters, state.groups, state.loss_scaler)).encode())
    return found.hexdigest()


def large_vocabulary(session: Session, plan: TrainPlan) -> TrainResult:
    """Peak bytes of the device for a loss and its gradients at a vocabulary of 128k, in chunks and plain."""
    import torch

    from orchestrator.domain.loss_chunks import loss_chunk_tokens
    from orchestrator.train.models.linear_loss import chunked_cross_entropy
    from orchestrator.train.models.tasks import IGNORE, summed_cross_entropy

    tokens, width, vocabulary = 8192, 1024, 128_256
    device = torch.device("cuda")
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(tokens, width, device=device, generator=generator, dtype=torch.bfloat16).requires_grad_()
    weight = torch.randn(vocabulary, width, device=device, generator=generator, dtype=torch.bfloat16).mul_(0.02)
    weight.requires_grad_()
    labels = torch.randint(0, vocabulary, (tokens,), device=device, generator=generator)
    chunk = loss_chunk_tokens("auto", tokens, vocabulary)
    assert chunk is not None
    found: dict[str, Any] = {}
    losses = []
    for name in ("chunked", "plain"):
        hidden.grad = weight.grad = None
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        if name == "chunked":
            loss = chunked_cross_entropy(hidden, weight, None, labels, chunk, IGNORE)
        else:
            loss = summed_cross_entropy(hidden @ weight.T, labels)
        loss.backward()
        losses.append(float(loss.detach()))
        found[f"{name}_bytes"] = torch.cuda.max_memory_allocated() - before
        del loss
    return TrainResult(0, True, facts={**found, "difference": abs(losses[0] - losses[1]) / abs(losses[1])})


def copy_speed(session: Session, plan: TrainPlan) -> TrainResult:
    """Bytes a second from the device into shared memory, as snapshots copy: before and after it is page-locked."""
    import mmap
    import time

    import torch

    from orchestrator.train.snapshot.staging import CudaStaging

    size = 1 << 30
    device = torch.device("cuda", torch.cuda.current_device())
    source = torch.ones(size, dtype=torch.uint8, device=device)
    descriptor = os.memfd_create("convoy-copy-speed")
    os.ftruncate(descriptor, size)
    memory = memoryview(mmap.mmap(descriptor, size))
    target = torch.frombuffer(memory, dtype=torch.uint8)
    target.zero_()  # the pages are there
    found: dict[str, Any] = {}
    staging = CudaStaging(device)
    for name in ("pageable", "page-locked"):
        if name == "page-locked":
            started_s = time.perf_counter()
            problem = staging.pin(memory)
            found["register_s"] = time.perf_counter() - started_s
            assert problem is None, problem
        times = []
        for _ in range(3):
            torch.cuda.synchronize()
            started_s = time.perf_counter()
            target.copy_(source, non_blocking=True)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - started_s)
        found[name] = size / min(times)
    assert bool((target == 1).all())
    staging.close()
    return TrainResult(0, True, facts=found)
