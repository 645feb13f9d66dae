"""A submission to the runs that it stands for: read, checked, nothing stored."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.clusters.placement import EPSILON, NodeCapacity, WorkerRequest, can_ever_fit, explain, request_of
from orchestrator.control.policy.queue_facts import QueueShare
from orchestrator.control.queue_store.run_rows import RunRow
from orchestrator.domain.errors import ConflictError, NotFoundError, UsageError
from orchestrator.domain.queue.priorities import Priority
from orchestrator.domain.queue.queue_states import QueueState
from orchestrator.domain.run_layout import RunLayout
from orchestrator.spec.job import JobSpec
from orchestrator.spec.loading.hints import nearest
from orchestrator.spec.loading.interpolate import run_key
from orchestrator.spec.loading.matrix import MatrixJob, load_matrix
from orchestrator.spec.quantities import parse_seconds
from orchestrator.store.run_store import NAME
from orchestrator.wire.run_messages import Submission

REFERENCE = re.compile(r"(?<!\$)\$\{runs\.([A-Za-z0-9][-A-Za-z0-9]*)\.")
MOST_REFERENCES = 32


@dataclass(frozen=True)
class PlannedRun:
    """A run to be queued."""

    spec: JobSpec
    label: str
    """Its values of the matrix, for people."""
    ask: WorkerRequest


def referenced(submission: Submission) -> tuple[str, ...]:
    """Names of the runs whose outputs the job uses. Raises UsageError if they are too many."""
    names = tuple(dict.fromkeys(REFERENCE.findall("\n".join([submission.spec, *submission.overrides]))))
    if len(names) > MOST_REFERENCES:
        raise UsageError(f"the job refers to {len(names)} other runs, expected at most {MOST_REFERENCES}")
    return names


def read_jobs(submission: Submission, variables: Mapping[str, str], before: Mapping[str, RunRow]) -> list[PlannedRun]:
    """The jobs of a submission with its options applied. `variables`: what `${NAME}` may name; `before`: runs by the
    names that the job uses. Raises SpecError with positions, UsageError."""
    options = {"name": submission.name, "schedule.queue": submission.queue, "schedule.priority": submission.priority}
    given = [f"{key}={json.dumps(value)}" for key, value in options.items() if value is not None]
    exports = {run_key(name): str(RunLayout(Path(row.directory)).export) for name, row in before.items()}
    jobs = load_matrix(submission.spec, submission.file_name, [*submission.overrides, *given], {**variables, **exports})
    return [_planned(job, number, len(jobs)) for number, job in enumerate(jobs, 1)]


def _planned(job: MatrixJob, number: int, count: int) -> PlannedRun:
    spec = job.spec
    if count > 1:
        spec = spec.model_copy(update={"name": f"{spec.name}-{number}"})
        if not NAME.fullmatch(spec.name):
            raise UsageError(f"{spec.name!r} is too long for the name of a run", hint="give the job a shorter `name`")
    ask = request_of(spec.resources)
    usable = max(ask.minimum, min(ask.maximum, spec.train.global_batch))
    return PlannedRun(spec, job.label, WorkerRequest(ask.bundle, ask.minimum, usable, ask.placement))


def check_queue(planned: PlannedRun, queues: Mapping[str, QueueShare]) -> None:
    """Raises NotFoundError if there is no such queue, UsageError if the run can never fit into its limit."""
    name = planned.spec.schedule.queue
    share = queues.get(name)
    if share is None:
        near = nearest(name, queues)
        hint = f"did you mean {near}? " if near else ""
        raise NotFoundError(f"there is no queue {name!r}", hint=f"{hint}The queues are {', '.join(sorted(queues))}")
    for resource, limit in share.limit.items():
        need = planned.ask.minimum * planned.ask.bundle.get(resource, 0.0)
        if need > limit + EPSILON:
            raise UsageError(
                f"the job needs {need:g} {resource} at least, and queue {name!r} never gets more than {limit:g}",
                hint="ask for fewer or smaller workers, or submit it to another queue",
            )


def check_fits(planned: PlannedRun, nodes: Sequence[NodeCapacity] | None, autoscales: bool) -> str | None:
    """A warning if only an autoscaler can make room. Raises UsageError if the run can never fit. `nodes`: None if the
    cluster does not answer; then nothing is known."""
    if nodes is None or can_ever_fit(planned.ask, nodes):
        return None
    error = explain(planned.ask, nodes)
    if autoscales:
        return f"{error.message}; it waits until the autoscaler has added nodes"
    raise UsageError(error.message, error.hint)


def check_needs(needs: Sequence[RunRow]) -> QueueState:
    """The first state of a run that comes after these. Raises ConflictError if one of them has failed."""
    for need in needs:
        if need.state in (QueueState.FAILED, QueueState.CANCELLED):
            raise ConflictError(
                f"nothing can come after run {need.id}: it is {need.state}", hint=f"convoy retry {need.id}"
            )
    waits = any(need.state is not QueueState.SUCCEEDED for need in needs)
    return QueueState.BLOCKED if waits else QueueState.QUEUED


def shape_of(spec: JobSpec) -> str:
    """Runs with equal shapes take as long for a step with as many workers: same model, batch, data shape, precision,
    sharding and worker. Sixteen hexadecimal digits."""
    resources = spec.resources
    parts = (
        spec.task,
        spec.model.model_dump_json(),
        spec.train.global_batch,
        spec.data.sequence_length,
        spec.train.precision,
        spec.zero.model_dump_json(),
        resources.cpus_per_worker,
        resources.gpus_per_worker,
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def limit_of(spec: JobSpec) -> float | None:
    """Seconds that the run may be active; None: no limit."""
    value = spec.schedule.max_runtime
    return parse_seconds(value) if value is not None else None


def rank_of(spec: JobSpec) -> int:
    """The rank of the run's priority class."""
    return Priority(spec.schedule.priority).rank
