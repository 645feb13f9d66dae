"""Which faults a job and a machine permit, and when each of them strikes. Pure."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from orchestrator.checkpoint.storage.storage import is_url
from orchestrator.domain.policy.numeric import Injection
from orchestrator.domain.policy.scorecard import DrillFault
from orchestrator.domain.policy.stragglers import WINDOW_STEPS
from orchestrator.spec.job import JobSpec

ON_NODES = (DrillFault.KILL_NODE, DrillFault.SILENCE_NODE, DrillFault.DRAIN_NODE, DrillFault.PARTITION)
INJECTED = (DrillFault.NAN, DrillFault.OOM)
"""Made by the worker itself, at a step that is arranged beforehand."""
ON_STORAGE = (DrillFault.DISK_FULL, DrillFault.BUCKET_DOWN)
REAL = tuple(fault for fault in DrillFault if fault not in (DrillFault.RANDOM, DrillFault.SLOW_RANK))
"""What `random` draws from."""
CHECKPOINTS_IN_MEMORY = 3
"""Most that lie in the memory of the machine beside those that are kept: one being written, one to be removed."""

Planned = tuple[int, DrillFault]
"""The step after which to strike, and how."""


@dataclass(frozen=True)
class Objection:
    """Why a fault cannot be had."""

    message: str
    hint: str | None = None


@dataclass(frozen=True)
class Machine:
    """What this machine permits."""

    no_mount: str | None
    """Why this process cannot mount a file system; None: it can."""
    no_network: str | None
    """Why it cannot make network namespaces; None: it can."""
    endpoint: str
    """Of S3, as the environment has it; empty if it has none."""
    memory_bytes: int
    """Available."""


@dataclass(frozen=True)
class Undisturbed:
    """What the undisturbed run showed."""

    steps: int
    micro_batch: int
    checkpoint_bytes: int
    """Of the largest one; 0 if none was written."""


def most(fault: DrillFault, spec: JobSpec, seen: Undisturbed | None) -> int | None:
    """How many faults of a kind the job gets over by its spec; None if nothing says so."""
    recovery = spec.recovery
    if fault is DrillFault.NAN:  # with `stop` one shows that it does not
        return {"rollback_and_skip": recovery.max_rollbacks, "stop": 1, "continue": 0}[recovery.on_nan]
    if fault is DrillFault.OOM and seen is not None:
        return seen.micro_batch.bit_length() - 1  # it is halved each time
    return None


def objection(
    fault: DrillFault, times: int, spec: JobSpec, machine: Machine, seen: Undisturbed | None = None
) -> Objection | None:
    """Why the job or the machine does not permit so many faults of a kind; None if they do.

    Without `seen` what only the undisturbed run can show is left open.
    """
    limit = most(fault, spec, seen)
    if limit is not None and times > limit:
        return _too_many(fault, times, spec)
    if fault in ON_NODES and (spec.cluster.nodes or 1) < 2:
        return Objection(
            f"{fault.value} needs a node besides the head, and the cluster has only one", "--set cluster.nodes=3"
        )
    if fault is DrillFault.PARTITION and machine.no_network is not None:
        return Objection(
            f"partition gives each node its own network namespace, which is not permitted: {machine.no_network}",
            "run it as root (CAP_NET_ADMIN and CAP_SYS_ADMIN) with iproute2 installed, or use --fault silence-node",
        )
    steps, needed = seen.steps if seen is not None else spec.train.steps, (times + 1) * 2 * WINDOW_STEPS
    if fault is DrillFault.SLOW_RANK and steps is not None and steps < needed:
        return Objection(
            f"workers are compared over {WINDOW_STEPS} steps: {steps} are too few for {times} faults",
            f"--set train.steps={needed}",
        )
    return _of_storage(fault, times, spec, machine, seen) if fault in ON_STORAGE else None


def _too_many(fault: DrillFault, times: int, spec: JobSpec) -> Objection:
    if fault is DrillFault.OOM:
        return Objection(
            f"OOM recovery halves the micro batch, and that of this job cannot be halved {times}"
            f" time{'s' if times != 1 else ''}",
            f"--set train.micro_batch={2**times}, or more",
        )
    recovery = spec.recovery
    return Objection(
        f"{times} numeric faults are more than the job recovers from: recovery.on_nan is"
        f" {recovery.on_nan}, recovery.max_rollbacks {recovery.max_rollbacks}",
        f"--set recovery.on_nan=rollback_and_skip --set recovery.max_rollbacks={times}",
    )


def _of_storage(
    fault: DrillFault, times: int, spec: JobSpec, machine: Machine, seen: Undisturbed | None
) -> Objection | None:
    checkpoint = spec.checkpoint
    bucket = checkpoint.storage is not None and is_url(checkpoint.storage)
    if fault is DrillFault.BUCKET_DOWN and not (bucket and str(checkpoint.storage).startswith("s3://")):
        return Objection(
            "bucket-down makes an S3 bucket unreachable, and the job has none: checkpoint.storage is"
            f" {checkpoint.storage or 'the run directory'}",
            "--set checkpoint.storage=s3://bucket/path, with AWS_ENDPOINT_URL and credentials in the environment",
        )
    if fault is DrillFault.BUCKET_DOWN and urlsplit(machine.endpoint).scheme != "http":
        return Objection(
            "bucket-down puts a proxy in front of the bucket's endpoint, which must be an http:// one:"
            f" AWS_ENDPOINT_URL is {machine.endpoint or 'not set'} (a certificate would not match the proxy's address)",
            "use your own S3 server for the drill",
        )
    if fault is DrillFault.DISK_FULL and bucket:
        return Objection(
            f"disk-full fills a directory, and checkpoint.storage is {checkpoint.storage}", "use --fault bucket-down"
        )
    if fault is DrillFault.DISK_FULL and machine.no_mount is not None:
        return Objection(
            f"disk-full mounts a small file system for the checkpoints, which is not permitted: {machine.no_mount}",
            "run it as root (CAP_SYS_ADMIN)",
        )
    every = checkpoint.interval_steps
    if not isinstance(every, int):
        return Objection(
            f"{fault.value} needs checkpoints during the fault and after it: checkpoint.interval_steps is {every}",
            "--set checkpoint.interval_steps=10",
        )
    if seen is None:
        return None
    if seen.steps // (times + 1) < 2 * every:
        return Objection(
            f"{times} faults need two checkpoints after each: {seen.steps} steps, one every {every}, are too few",
            f"--set checkpoint.interval_steps={max(1, seen.steps // (times + 1) // 4)}, or more steps",
        )
    need = seen.checkpoint_bytes * (checkpoint.keep_last + CHECKPOINTS_IN_MEMORY)
    if fault is DrillFault.DISK_FULL and need > machine.memory_bytes // 2:
        return Objection(
            f"disk-full keeps the run's checkpoints in memory: {need / 2**30:.1f} GiB, over half of the free memory",
            "use a smaller model, or a lower checkpoint.keep_last",
        )
    return None


def permitted(spec: JobSpec, machine: Machine, seen: Undisturbed) -> tuple[list[DrillFault], dict[DrillFault, str]]:
    """What `random` may draw, and why it leaves the others out."""
    found = {fault: objection(fault, 1, spec, machine, seen) for fault in REAL}
    left_out: dict[DrillFault, str] = {fault: why.message for fault, why in found.items() if why is not None}
    return [fault for fault in REAL if fault not in left_out], left_out


def plan(
    fault: DrillFault,
    when: Sequence[int],
    choices: Sequence[DrillFault],
    spec: JobSpec,
    seen: Undisturbed,
    draw: random.Random,
) -> list[Planned]:
    """Each fault with its step; `random` ones are drawn of `choices`, none more often than the job gets over."""
    planned: list[Planned] = []
    for step in when:
        if fault is not DrillFault.RANDOM:
            planned.append((step, fault))
            continue
        so_far = [each for _, each in planned]
        planned.append((step, draw.choice([each for each in choices if not _used_up(each, so_far, spec, seen)])))
    return planned


def _used_up(fault: DrillFault, so_far: Sequence[DrillFault], spec: JobSpec, seen: Undisturbed) -> bool:
    limit = most(fault, spec, seen)
    return limit is not None and so_far.count(fault) >= limit


def injections(planned: Sequence[Planned], spec: JobSpec, draw: random.Random) -> tuple[Injection, ...]:
    """Those of the faults that workers make themselves."""
    workers = spec.resources.workers
    fewest = workers if isinstance(workers, int) else workers.min
    return tuple(
        Injection("nan" if fault is DrillFault.NAN else "oom", step + 1, draw.randrange(fewest))
        for step, fault in planned
        if fault in INJECTED
    )
