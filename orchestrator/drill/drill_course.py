"""The course of a drill: the undisturbed run, the run with faults, and their comparison."""

import contextlib
import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from orchestrator.clusters.ray.ray_settings import require_token
from orchestrator.domain.errors import UsageError
from orchestrator.domain.events import CheckpointSaved, Event, Observer, RunState, TrainingPlanned
from orchestrator.domain.fault_plan import Arranged
from orchestrator.domain.policy.replay import LOW_PRECISION_TOLERANCE
from orchestrator.domain.policy.scorecard import (
    LOSS_FP32_TOLERANCE,
    DrillFault,
    FaultResult,
    Scorecard,
    max_relative_difference,
    strike_steps,
)
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport
from orchestrator.drill import limited_disk, node_network
from orchestrator.drill.bucket_proxy import HOST, Link
from orchestrator.drill.drill_plan import (
    INJECTED,
    Machine,
    Planned,
    Undisturbed,
    injections,
    objection,
    permitted,
    plan,
)
from orchestrator.drill.drilled_run import DrilledRun
from orchestrator.drill.fault_injector import Injector, Means
from orchestrator.metrics.event_bus import named
from orchestrator.run.launcher import RunOutcome, run_job
from orchestrator.spec.loading.load import LoadedJob
from orchestrator.spec.tracking import LoggingSpec
from orchestrator.store.data_proof import prove
from orchestrator.store.run_history import current_steps
from orchestrator.store.run_store import RunStore
from orchestrator.store.skip_file import read_skips

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
"""Variables, the first that is set counts."""


def drill(
    job: LoadedJob,
    home: Path,
    fault: DrillFault,
    times: int,
    seed: int,
    observers: Sequence[Observer],
    stop: threading.Event,
    tell: Callable[[str], None],
) -> Scorecard | None:
    """Run `job` undisturbed, then with `times` faults spread over its steps; None if stopped.

    `tell` gets messages for the user beside the runs' events. Raises UsageError if the job cannot be drilled: it must
    run on a local cluster with enough steps, and this machine must permit the fault.
    """
    # Its two runs are no experiments: no tracker gets them.
    job = replace(job, spec=job.spec.model_copy(update={"logging": LoggingSpec()}))
    if job.spec.cluster.address is not None:
        raise UsageError(
            "a drill kills nodes and needs a local cluster",
            hint="--set cluster.nodes=4, and remove cluster.address",
        )
    limited_disk.sweep()
    node_network.sweep()
    machine = look_at_machine(fault, os.environ)
    _require(fault, times, job, machine, None)
    if job.spec.train.steps is not None:
        _strike_steps(job.spec.train.steps, times)
    watch = _Watch()
    undisturbed = run_job(job, home, [watch, *observers], stop)
    if stop.is_set():
        return None
    if undisturbed.state is not RunState.SUCCEEDED:
        raise UsageError(f"the job does not finish even without faults: {undisturbed.reason}")
    when = _strike_steps(undisturbed.step, times)
    seen = Undisturbed(undisturbed.step, watch.micro_batch, watch.checkpoint_bytes)
    _require(fault, times, job, machine, seen)
    choices, left_out = permitted(job.spec, machine, seen) if fault is DrillFault.RANDOM else ([fault], {})
    for each, why in left_out.items():
        tell(f"random leaves out {each.value}: {why}")
    draw = random.Random(seed)
    planned = plan(fault, when, choices, job.spec, seen, draw)
    outcome, results = _disturbed(job, home.absolute(), planned, draw, observers, stop)
    skipped = read_skips(RunLayout(outcome.run_dir))
    if skipped and not stop.is_set():
        # By design its losses are not those of a run that used these samples, but of one that never had them.
        given = tuple(replace(skip, from_step=0, fault=None) for skip in skipped)
        undisturbed = run_job(job, home, observers, stop, arranged=Arranged(skips=given))
    return None if stop.is_set() else _score(job, undisturbed, outcome, results, len(when))


def look_at_machine(fault: DrillFault, environment: Mapping[str, str]) -> Machine:
    """What this machine permits, as far as the fault needs it; found by trying."""
    asks = {fault} if fault is not DrillFault.RANDOM else set(DrillFault)
    return Machine(
        no_mount=limited_disk.why_not() if DrillFault.DISK_FULL in asks else None,
        no_network=node_network.why_not() if DrillFault.PARTITION in asks else None,
        endpoint=next((environment[name] for name in ENDPOINTS if environment.get(name)), ""),
        memory_bytes=int(psutil.virtual_memory().available),
    )


def _require(fault: DrillFault, times: int, job: LoadedJob, machine: Machine, seen: Undisturbed | None) -> None:
    why = objection(fault, times, job.spec, machine, seen)
    if why is not None:
        raise UsageError(why.message, hint=why.hint)


def _strike_steps(steps: int, times: int) -> tuple[int, ...]:
    try:
        return strike_steps(steps, times)
    except ValueError as error:
        raise UsageError(str(error), hint="lower --times, or raise train.steps") from error


class _Watch:
    """Observer of the undisturbed run: collects what the plan of the other run needs."""

    def __init__(self) -> None:
        self.micro_batch = 1
        self.checkpoint_bytes = 0

    def on_event(self, event: Event) -> None:
        match event.body:
            case TrainingPlanned() as plan:
                self.micro_batch = plan.micro_batch
            case CheckpointSaved() as saved:
                self.checkpoint_bytes = max(self.checkpoint_bytes, saved.bytes)

    def on_step(self, report: StepReport) -> None:
        """Nothing: steps are not needed."""


def _disturbed(
    job: LoadedJob,
    home: Path,
    planned: Sequence[Planned],
    draw: random.Random,
    observers: Sequence[Observer],
    stop: threading.Event,
) -> tuple[RunOutcome, list[FaultResult]]:
    """The run with the faults."""
    faults = {fault for _, fault in planned}
    with contextlib.ExitStack() as stack:
        environment = dict(os.environ)
        link = stack.enter_context(_proxied(environment)) if DrillFault.BUCKET_DOWN in faults else None
        nodes = job.spec.cluster.nodes or 1
        net = stack.enter_context(_networked(environment, nodes)) if DrillFault.PARTITION in faults else None
        arranged = Arranged(injections(planned, job.spec, draw), nodes=net.nodes if net is not None else ())
        run = DrilledRun(job, home, arranged, environment)
        means = Means(environment, run.kill, job.spec.checkpoint.storage, DrillFault.DISK_FULL in faults, link, net)
        injector = Injector(home, [each for each in planned if each[1] not in INJECTED], draw, means)
        stack.callback(injector.close)
        run.watch("the drill", injector, essential=True)
        for name, observer in named(observers):
            run.watch(name, observer)
        outcome = run.carry(stop)
    return outcome, injector.tally.results


@contextlib.contextmanager
def _proxied(environment: dict[str, str]) -> Iterator[Link]:
    """A proxy in front of the endpoint in the environment, which then names the proxy."""
    name = next(name for name in ENDPOINTS if environment.get(name))
    endpoint = urlsplit(environment[name])
    link = Link(str(endpoint.hostname), endpoint.port or 80)
    environment[name] = endpoint._replace(netloc=f"{HOST}:{link.port}").geturl()
    try:
        yield link
    finally:
        link.close()


@contextlib.contextmanager
def _networked(environment: dict[str, str], nodes: int) -> Iterator[node_network.Network]:
    """A network for the nodes, and a token for the cluster on it."""
    made = node_network.Network(nodes)
    require_token(environment)
    try:
        yield made
    finally:
        made.close()


def _score(
    job: LoadedJob, undisturbed: RunOutcome, outcome: RunOutcome, results: Sequence[FaultResult], planned: int
) -> Scorecard:
    proof = prove(RunStore(outcome.run_dir.parent).read(outcome.run_id))
    losses = _losses(outcome) if proof.ok else []
    return Scorecard(
        run=outcome.run_id,
        undisturbed_run=undisturbed.run_id,
        faults=tuple(results),
        planned=planned,
        finished=outcome.state is RunState.SUCCEEDED,
        reason=outcome.reason,
        data_exact=proof.ok,
        max_loss_difference=max_relative_difference(losses, _losses(undisturbed)),
        samples_left_out=proof.skipped_samples,
        tolerance=LOSS_FP32_TOLERANCE if job.spec.train.precision == "fp32" else LOW_PRECISION_TOLERANCE,
    )


def _losses(outcome: RunOutcome) -> list[float]:
    return [step.loss for step in current_steps(RunLayout(outcome.run_dir).steps)]
