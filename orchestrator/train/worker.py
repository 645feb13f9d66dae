"""The entry point of a worker, which `gang` names by string: import, rendezvous, build, restore, train, export."""

import gc
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.domain.devices.cpu_threads import (
    THREADS_VARIABLE,
    compute_threads,
    offload_threads,
    thread_environment,
)
from orchestrator.domain.devices.device import CPU, CUDA, deterministic_environment
from orchestrator.domain.errors import PeerLostError, UsageError, cause_of_error
from orchestrator.domain.events import CheckpointRestored, TrainingPlanned, WarningIssued, WorkerPhase, WorkerStarted
from orchestrator.domain.policy.hang import Phase
from orchestrator.domain.session import Session, TrainPlan, TrainResult
from orchestrator.json_values import JsonObject, optional, text
from orchestrator.spec.job import JobSpec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from orchestrator.data.data_manifest import DataManifest
    from orchestrator.train.models.linear_loss import ChunkedHead
    from orchestrator.train.models.tasks import Task
    from orchestrator.train.snapshot.checkpointing import SaveProgress
    from orchestrator.train.train_context import TrainContext


def run_worker(session: Session, plan: TrainPlan) -> TrainResult:
    """Train `plan` as rank `session.rank`. Collective: all ranks of the session run it.

    The process can run another plan afterwards: the process group and the engine are gone when it returns, and
    also when it raises.
    """
    spec = JobSpec.model_validate_json(json.dumps(plan.spec))
    _phase(session, Phase.IMPORT)
    started = time.perf_counter()
    os.environ.update(deterministic_environment(spec.train.deterministic))
    _set_threads(spec)
    from orchestrator.train.collectives.abort_collectives import Unblocker
    from orchestrator.train.collectives.nccl_sequence import nccl_counts
    from orchestrator.train.collectives.rendezvous import join_process_group, leave_process_group
    from orchestrator.train.engine.gpu_check import worker_device
    from orchestrator.train.models.execution import set_numerics

    device = worker_device(session, spec.resources.gpus_per_worker)
    set_numerics(spec, device.type)
    _import_model(spec, device.type)
    _phase(session, Phase.RENDEZVOUS)
    unblock = Unblocker(device.type)
    session.on_interrupt(unblock)
    session.count_collectives(nccl_counts if device.type == CUDA else None)
    try:
        with blamed_on_peers(session), unblock.aborting_on_error():
            join_process_group(session, device)
            _set_offload_threads(spec, device)
            _phase(session, Phase.BUILD)
            context = _build(session, plan, spec, device)
        try:
            with blamed_on_peers(session), unblock.aborting_on_error():
                unblock.learn()
                _tell_started(session, device, time.perf_counter() - started)
                result = _train(context)
        finally:
            from orchestrator.train.engine.engine import destroy_engine

            engine = context.engine
            del context
            destroy_engine(engine)
            del engine
        _export(session, plan, spec, result)
        return result
    finally:
        leave_process_group()
        session.count_collectives(None)
        session.on_interrupt(None)  # last: to leave may wait for a peer, too


@contextmanager
def blamed_on_peers(session: Session) -> Iterator[None]:
    """Context in which an error after an interruption is no error of this worker: results of an aborted collective are
    garbage, and code that reads them may raise anything. Only errors of a lost device are kept."""
    try:
        yield
    except Exception as error:
        cause = cause_of_error(error)
        if not session.interrupted or isinstance(error, PeerLostError) or (cause is not None and cause.ends_process):
            raise
        raise PeerLostError(f"left the collective on request of the driver: {type(error).__name__}: {error}") from error


def _tell_started(session: Session, device: "torch.device", seconds: float) -> None:
    session.report_event(
        WorkerStarted(
            rank=session.rank,
            node=session.node_ip,
            pid=os.getpid(),
            device=_device_name(device),
            seconds=seconds,
            host=socket.gethostname(),
            node_id=session.node_id,
        ),
    )


def _build(session: Session, plan: TrainPlan, spec: JobSpec, device: "torch.device") -> "TrainContext":
    from orchestrator.data.samples.dataset import TokenDataset
    from orchestrator.train.collectives.collective_timer import ticking_collectives
    from orchestrator.train.engine.build_memory import no_samples_yet, shape_of, shape_of_config, tell_room
    from orchestrator.train.engine.deepspeed_config import EngineShape
    from orchestrator.train.engine.engine import build_engine
    from orchestrator.train.models.architectures import build_model, model_config
    from orchestrator.train.models.shares import keep_for
    from orchestrator.train.models.sizing import model_size
    from orchestrator.train.train_context import TrainContext

    dataset = TokenDataset.open(session.fetch(plan.data_dir))
    session.beat(0, Phase.MODEL)
    keep = keep_for(spec, session.rank, session.world_size, device)
    room = tell_room(session, device)
    with no_samples_yet(session, spec, lambda: shape_of_config(model_config(spec, dataset.manifest)), room):
        model = build_model(spec, dataset.manifest, restored=plan.restores, keep=keep)
    size = model_size(model)
    shape = EngineShape(session.world_size, plan.micro_batch, plan.accumulation, device.type)
    task = _task(spec, dataset.manifest, model, _chunked_head(spec, plan, model))
    if session.rank == 0:
        session.report_event(
            TrainingPlanned(
                world_size=session.world_size,
                shares=plan.shares,
                micro_batch=plan.micro_batch,
                accumulation=plan.accumulation,
                total_steps=plan.total_steps,
                parameters=size.parameters,
            )
        )
    session.beat(0, Phase.BUILD)
    sized = partial(shape_of, model, size.parameters)
    with ticking_collectives(session.progress), no_samples_yet(session, spec, sized, room):
        engine = build_engine(spec, model, shape, restored=plan.restores)
    return TrainContext(session, plan, spec, dataset, task, engine, device, size)


def _chunked_head(spec: JobSpec, plan: TrainPlan, model: "PreTrainedModel") -> "ChunkedHead | None":
    """The model's head, if the loss is to be computed in chunks. Raises UsageError if the model cannot do that."""
    from orchestrator.domain.loss_chunks import loss_chunk_tokens
    from orchestrator.train.models.linear_loss import install_chunked_head
    from orchestrator.train.models.tasks import IGNORE

    wanted = spec.train.loss_chunk_tokens
    most = plan.micro_batch * spec.data.sequence_length
    chunk_tokens = loss_chunk_tokens(wanted, most, model.config.vocab_size)
    if chunk_tokens is None:
        return None
    head = install_chunked_head(model, chunk_tokens, IGNORE)
    if head is None and wanted != "auto":
        raise UsageError(
            f"train.loss_chunk_tokens: {wanted} does not fit this model: its logits are more than one linear layer",
            hint="Set it to auto or off.",
        )
    return head


def _task(spec: JobSpec, manifest: "DataManifest", model: "PreTrainedModel", head: "ChunkedHead | None") -> "Task":
    from orchestrator.train.models.architectures import objective_of
    from orchestrator.train.models.tasks import CausalLM, MaskedLM

    if objective_of(model.config) == "causal":
        return CausalLM(pad_id=manifest.pad_id, head=head)
    if manifest.mask_id is None:
        raise UsageError(
            "the model is a masked language model, but the tokenizer has no mask token",
            hint="Use a tokenizer with a mask token, or train one with tokenizer.train.",
        )
    return MaskedLM(
        pad_id=manifest.pad_id,
        mask_id=manifest.mask_id,
        vocab_size=manifest.vocab_size,
        probability=spec.train.mlm_probability,
        seed=spec.train.seed,
        head=head,
    )


def _train(context: "TrainContext") -> TrainResult:
    from orchestrator.train.engine.build_memory import no_samples_yet, shape_of
    from orchestrator.train.models.compilation import compilation_reported
    from orchestrator.train.snapshot.checkpointing import SaveProgress
    from orchestrator.train.step_loop import TrainLoop

    session, plan = context.session, context.plan
    start = SaveProgress(step=0, position=0)
    if plan.restores:
        _phase(session, Phase.RESTORE)
        sized = partial(shape_of, context.engine.module, context.size.parameters)
        with no_samples_yet(session, context.spec, sized):
            start = _restore(context)
    fresh_on_gpu = not plan.restores and context.device.type == CUDA
    if fresh_on_gpu and session.rank == 0:
        _warn_of_precision(context)
    with compilation_reported(session.progress) if context.spec.train.compile != "off" else nullcontext():
        if fresh_on_gpu:
            from orchestrator.train.engine.trial import try_longest

            try_longest(context)
        _phase(session, Phase.TRAIN)
        result = TrainLoop(context, start).run()
    facts: JsonObject = {
        "loss": result.loss,
        "validation_loss": result.evaluation.loss if result.evaluation is not None else None,
        "parameters": context.size.parameters,
        "checkpoint": result.checkpoint,
    }
    return TrainResult(result.step, result.finished, result.regroup, result.unsaved, facts)


def _warn_of_precision(context: "TrainContext") -> None:
    import torch

    from orchestrator.train.models.execution import slow_precision

    message = slow_precision(context.spec, torch.cuda.get_device_capability(context.device))
    if message is not None:
        context.session.report_event(WarningIssued(message))


def _export(session: Session, plan: TrainPlan, spec: JobSpec, result: TrainResult) -> None:
    """Only once the engine is gone: its memory, on the host and on a GPU, is the export's then."""
    if plan.export and result.finished and result.unsaved is None and session.rank == 0:
        from orchestrator.train.convert.exporting import export_run
        from orchestrator.train.engine.process_memory import return_free_memory

        gc.collect()  # the engine is part of cycles, and whoever destroyed it still had a reference
        return_free_memory()
        _phase(session, Phase.EXPORT, result.step)
        checkpoint = optional(text, result.facts, "checkpoint") or plan.resume_from
        export_run(session, plan, spec, checkpoint, result.step)


def _restore(context: "TrainContext") -> "SaveProgress":
    """Restore the state that the plan names. Collective."""
    from orchestrator.train.snapshot.checkpointing import load_checkpoint, load_peer_state

    session, plan, started = context.session, context.plan, time.perf_counter()
    if plan.peer_state is not None:
        progress, source = load_peer_state(context.engine, session, plan.peer_state), "vaults"
    else:
        assert plan.resume_from is not None
        progress, source = load_checkpoint(context.engine, session, plan.resume_from), plan.resume_from
    if session.rank == 0:
        session.report_event(
            CheckpointRestored(
                step=progress.step,
                path=source,
                seconds=time.perf_counter() - started,
                saved_world_size=progress.saved_world_size,
                world_size=session.world_size,
            )
        )
    return progress


def _phase(session: Session, phase: Phase, step: int = 0) -> None:
    session.beat(step, phase)
    if session.rank == 0:
        session.report_event(WorkerPhase(0, phase.value))


def _set_threads(spec: JobSpec) -> None:
    """As many compute threads as the worker has CPUs, unless the environment says otherwise."""
    cpus = spec.resources.cpus_per_worker
    if not os.environ.get(THREADS_VARIABLE):
        os.environ.update(thread_environment(cpus, os.environ))
    import torch

    torch.set_num_threads(compute_threads(cpus, os.environ))


def _set_offload_threads(spec: JobSpec, device: "torch.device") -> None:
    """More of them if the optimizer runs on the host while the model trains on a GPU. Collective."""
    if device.type == CPU or spec.zero.offload_optimizer.device == "none":
        return
    import torch

    from orchestrator.train.collectives.rendezvous import ranks_on_host

    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(offload_threads(spec.resources.cpus_per_worker, os.environ, cores, ranks_on_host()))


def _import_model(spec: JobSpec, device: str) -> None:
    """Import what is needed only here, so that the phases are accurate."""
    from orchestrator.train.engine.engine import import_deepspeed
    from orchestrator.train.models.architectures import ARCHITECTURES

    import_deepspeed(device)
    if spec.model.architecture is not None:
        ARCHITECTURES[spec.model.architecture].model_type()


def _device_name(device: "torch.device") -> str:
    if device.type == "cpu":
        return "cpu"
    import torch

    return torch.cuda.get_device_name(device)
