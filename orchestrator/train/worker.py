"""A worker's life: import, rendezvous, build, restore, train, export. The entry point that `gang` names by string."""

import json
import os
import time
from typing import TYPE_CHECKING, Any

from orchestrator.domain.device import CUDA
from orchestrator.domain.events import EventKind
from orchestrator.domain.hang import Phase
from orchestrator.domain.session import Session, TrainPlan, TrainResult
from orchestrator.spec.job import JobSpec

if TYPE_CHECKING:
    from orchestrator.train.checkpointing import Progress
    from orchestrator.train.context import TrainContext


def run_worker(session: Session, plan: TrainPlan) -> TrainResult:
    """Train `plan` as rank `session.rank`. Collective: all ranks of the session run it.

    The process can run another plan afterwards: the process group and the engine are gone when it returns, and
    also when it raises.
    """
    spec = JobSpec.model_validate_json(json.dumps(plan.spec))
    _phase(session, Phase.IMPORT)
    started = time.perf_counter()
    _set_threads(spec)
    from orchestrator.train.device import worker_device
    from orchestrator.train.rendezvous import join_process_group, leave_process_group
    from orchestrator.train.unblock import Unblocker

    device = worker_device(session, spec.resources.gpus_per_worker)
    _import_model(spec, device.type)
    _phase(session, Phase.RENDEZVOUS)
    unblock = Unblocker()
    session.on_interrupt(unblock)
    try:
        join_process_group(session, device)
        _phase(session, Phase.BUILD)
        context = _build(session, plan, spec, device)
        try:
            unblock.learn()
            session.report_event(
                EventKind.WORKER_STARTED,
                {
                    "rank": session.rank,
                    "node": session.node_ip,
                    "pid": os.getpid(),
                    "device": _device_name(device),
                    "seconds": time.perf_counter() - started,
                },
            )
            return _train(context)
        finally:
            from orchestrator.train.engine import destroy_engine

            engine = context.engine
            del context
            destroy_engine(engine)
            del engine
    finally:
        session.on_interrupt(None)
        leave_process_group()


def _build(session: Session, plan: TrainPlan, spec: JobSpec, device: Any) -> "TrainContext":
    from orchestrator.data.dataset import TokenDataset
    from orchestrator.train.context import TrainContext
    from orchestrator.train.deepspeed_config import EngineShape
    from orchestrator.train.device_memory import no_samples_yet, shape_of
    from orchestrator.train.engine import build_engine
    from orchestrator.train.models import build_model
    from orchestrator.train.sizing import model_size
    from orchestrator.train.waiting import ticking_collectives

    dataset = TokenDataset.open(session.fetch(plan.data_dir))
    session.beat(0, Phase.MODEL)
    model = build_model(spec, dataset.manifest, restored=plan.restores)
    size = model_size(model)
    shape = EngineShape(session.world_size, plan.micro_batch, plan.accumulation, device.type)
    task = _task(spec, dataset.manifest, model)
    if session.rank == 0:
        session.report_event(
            EventKind.PLAN,
            {
                "world_size": session.world_size,
                "shares": list(plan.shares),
                "micro_batch": plan.micro_batch,
                "accumulation": plan.accumulation,
                "total_steps": plan.total_steps,
                "parameters": size.parameters,
            },
        )
    session.beat(0, Phase.BUILD)
    with ticking_collectives(session.progress), no_samples_yet(session, spec, shape_of(model, size.parameters), device):
        engine = build_engine(spec, model, shape, restored=plan.restores)
    return TrainContext(session, plan, spec, dataset, task, engine, device, size)


def _task(spec: JobSpec, manifest: Any, model: Any) -> Any:
    from orchestrator.domain.errors import UsageError
    from orchestrator.train.models import objective_of
    from orchestrator.train.tasks import CausalLM, MaskedLM

    if objective_of(model.config) == "causal":
        return CausalLM(pad_id=manifest.pad_id)
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
    )


def _train(context: "TrainContext") -> TrainResult:
    from orchestrator.train.checkpointing import Progress
    from orchestrator.train.device_memory import no_samples_yet, shape_of
    from orchestrator.train.loop import TrainLoop

    session, plan = context.session, context.plan
    start = Progress(step=0, position=0)
    if plan.restores:
        _phase(session, Phase.RESTORE)
        shape = shape_of(context.engine.module, context.size.parameters)
        with no_samples_yet(session, context.spec, shape, context.device):
            start = _restore(context)
    elif context.device.type == CUDA:
        from orchestrator.train.trial import try_longest

        try_longest(context)
    _phase(session, Phase.TRAIN)
    result = TrainLoop(context, start).run()
    if plan.export and result.finished and result.unsaved is None and session.rank == 0:
        from orchestrator.train.exporting import export_run

        _phase(session, Phase.EXPORT, result.step)
        export_run(context, result.checkpoint or plan.resume_from, result.step)
    facts = {
        "loss": result.loss,
        "validation_loss": result.evaluation.loss if result.evaluation is not None else None,
        "parameters": context.size.parameters,
        "checkpoint": result.checkpoint,
    }
    return TrainResult(result.step, result.finished, result.regroup, result.unsaved, facts)


def _restore(context: "TrainContext") -> "Progress":
    """Put the state that the plan names into the engine. Collective."""
    from orchestrator.train.checkpointing import load_checkpoint, load_peer_state

    session, plan, started = context.session, context.plan, time.perf_counter()
    if plan.peer_state is not None:
        progress, source = load_peer_state(context.engine, session, plan.peer_state), "vaults"
    else:
        assert plan.resume_from is not None
        progress, source = load_checkpoint(context.engine, session, plan.resume_from), plan.resume_from
    if session.rank == 0:
        session.report_event(
            EventKind.CHECKPOINT_RESTORED,
            {
                "step": progress.step,
                "path": source,
                "seconds": time.perf_counter() - started,
                "saved_world_size": progress.saved_world_size,
                "world_size": session.world_size,
            },
        )
    return progress


def _phase(session: Session, phase: Phase, step: int = 0) -> None:
    session.beat(step, phase)
    if session.rank == 0:
        session.report_event(EventKind.WORKER_PHASE, {"rank": 0, "phase": phase.value})


def _set_threads(spec: JobSpec) -> None:
    """As many compute threads as the worker has CPUs, unless the environment says otherwise."""
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, int(spec.resources.cpus_per_worker)))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)


def _import_model(spec: JobSpec, device: str) -> None:
    """Import what is needed, here and only here, so that the phases mean what they say."""
    from orchestrator.train.engine import import_deepspeed
    from orchestrator.train.models import ARCHITECTURES

    import_deepspeed(device)
    if spec.model.architecture is not None:
        ARCHITECTURES[spec.model.architecture].model_type()


def _device_name(device: Any) -> str:
    if device.type == "cpu":
        return "cpu"
    import torch

    return torch.cuda.get_device_name(device)
