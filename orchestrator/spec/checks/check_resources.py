"""`resources` and `cluster`: workers, batches, what a local cluster can hold."""

import re
from collections.abc import Iterator

from orchestrator.spec.checks.partial_job import View
from orchestrator.spec.quantities import format_bytes, parse_bytes
from orchestrator.spec.resources import BUCKET_SCHEMES
from orchestrator.spec.spec_errors import Problem

_RESERVED = {
    "cpu": "cpus_per_worker",
    "gpu": "gpus_per_worker",
    "memory": "memory_per_worker",
    "object_store_memory": "memory_per_worker",
}
DECIDED_VARIABLES = frozenset(
    {
        "DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES",
        "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_RETHROW_CUDA_ERRORS", "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC",
        "TORCH_NCCL_DUMP_ON_TIMEOUT", "TORCH_NCCL_ENABLE_MONITORING",
    }
)  # fmt: skip
"""Environment variables that Convoy sets for each worker; `domain.device` has the values."""
_SECRET = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|(API|ACCESS|PRIVATE)_?KEY)(_|$)", re.IGNORECASE)
_MIN_MEMORY_BYTES = 64 << 20


def worker_range(view: View) -> tuple[int, int]:
    """(fewest, most) workers. Raises Unavailable."""
    workers = view.get("resources.workers")
    if isinstance(workers, dict):
        return view.integer("resources.workers.min"), view.integer("resources.workers.max")
    count = view.integer("resources.workers")
    return count, count


def range_in_order(view: View) -> Iterator[Problem]:
    """min is not more than max."""
    fewest, most = worker_range(view)
    if fewest > most:
        message = f"`resources.workers` has `min` {fewest}, more than its `max` {most}"
        yield view.problem("resources.workers.min", message, "swap the two")


def batch_feeds_workers(view: View) -> Iterator[Problem]:
    """Every worker gets a sample of every batch."""
    batch, (_, most) = view.integer("train.global_batch"), worker_range(view)
    if batch < most:
        message = f"`train.global_batch` is {batch}, less than the {most} workers: some would have nothing to do"
        yield view.problem("train.global_batch", message, f"at least `global_batch: {most}`, or fewer workers")


def micro_batch_fits(view: View) -> Iterator[Problem]:
    """A micro batch is no larger than the largest share any worker can get."""
    micro, batch, (fewest, most) = view.get("train.micro_batch"), view.integer("train.global_batch"), worker_range(view)
    share = -(-batch // fewest)
    if isinstance(micro, int) and micro > share and fewest <= most:
        workers = f"{fewest} worker{'s' if fewest > 1 else ''}"
        message = (
            f"`train.micro_batch` is {micro}, a worker's share of `global_batch` {batch} is only {share} ({workers})"
        )
        yield view.problem("train.micro_batch", message, f"at most `micro_batch: {share}`, or `auto`")


def nodes_or_address(view: View) -> Iterator[Problem]:
    """A cluster of its own or one that is there."""
    if not view.given("cluster.address"):
        return
    for name in ("nodes", "cpus_per_node"):
        if view.given(f"cluster.{name}"):
            message = f"`cluster.{name}` does not go with `cluster.address`: that cluster is there already"
            yield view.problem(
                f"cluster.{name}", message, f"remove `{name}` to join it, or `address` to start one", True
            )
    address = view.text("cluster.address")
    if not re.fullmatch(r"auto|(ray://)?[^\s/:]+:[0-9]{1,5}|\[[0-9a-fA-F:]+\]:[0-9]{1,5}", address):
        message = f"`cluster.address` is `{address}`, expected `host:port` or `auto`"
        yield view.problem("cluster.address", message, "Ray's port is 6379 unless it was changed")


def memory_parses(view: View) -> Iterator[Problem]:
    """An amount of memory that can be read and is enough to start Python in."""
    memory = view.get("resources.memory_per_worker")
    if not isinstance(memory, int | str):
        return
    try:
        amount = parse_bytes(memory)
    except ValueError:
        message = f"`resources.memory_per_worker` is `{memory}`, expected bytes or an amount such as `4GiB` or `500MB`"
        yield view.problem("resources.memory_per_worker", message, "units: KB MB GB TB (1000), KiB MiB GiB TiB (1024)")
        return
    if amount < _MIN_MEMORY_BYTES:
        message = f"`resources.memory_per_worker` is {format_bytes(amount)}, too little for any worker"
        hint = f"`{memory}GiB`?" if isinstance(memory, int) or memory.isdigit() else "at least `1GiB`"
        yield view.problem("resources.memory_per_worker", message, hint)


def custom_names(view: View) -> Iterator[Problem]:
    """Custom resources have names of their own."""
    for name in view.keys("resources.custom"):
        where = ("resources", "custom", name)
        if name.lower() in _RESERVED:
            message = f"`{name}` is not a custom resource: it is built into Ray"
            yield view.problem(where, message, f"set `resources.{_RESERVED[name.lower()]}`", key=True)
        elif not re.fullmatch(r"[A-Za-z0-9][-A-Za-z0-9_.:/]*", name):
            message = (
                f"`{name}` is no valid resource name, expected letters, digits and `_ - . : /`, a letter or digit first"
            )
            yield view.problem(where, message, key=True)


def variables_of_workers(view: View) -> Iterator[Problem]:
    """Environment variables that may be set, with names that the system takes, and without secrets."""
    for name in view.keys("resources.env"):
        where = ("resources", "env", name)
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            message = (
                f"`{name}` is no valid environment variable name, expected letters, digits and `_`, no digit first"
            )
            yield view.problem(where, message, key=True)
        elif name in DECIDED_VARIABLES:
            yield view.problem(where, f"`{name}` is set by Convoy for each worker", "leave it out", key=True)
        elif _SECRET.search(name):
            # The value is not repeated.
            message = f"`{name}` looks like a secret, and a job file is kept with the run"
            yield view.problem(where, message, "set it on the nodes, e.g. in a systemd unit", key=True)


def fits_local_nodes(view: View) -> Iterator[Problem]:
    """Workers fit on the local nodes as they are described."""
    if view.given("cluster.address"):
        return
    nodes = view.optional_integer("cluster.nodes") or 1
    offered = view.optional_number("cluster.cpus_per_node")
    fewest, _ = worker_range(view)
    placement, each = view.get("resources.placement"), view.number("resources.cpus_per_worker")
    if placement == "strict_spread" and fewest > nodes:
        message = f"`placement: strict_spread` puts {fewest} workers on as many nodes, the cluster has {nodes}"
        yield view.problem("resources.placement", message, f"set `cluster.nodes: {fewest}`, or `placement: spread`")
        return
    if offered is None:
        return
    usable = 1 if placement == "strict_pack" else nodes
    slots = int(min(offered / each + 1e-9, 1e6)) * usable
    if slots < fewest:
        per = fewest if placement == "strict_pack" else -(-fewest // nodes)
        where = "one node" if usable == 1 else f"{usable} nodes"
        message = (
            f"{where} of {offered:g} CPUs hold{'s' if usable == 1 else ''} {slots} workers of {each:g} CPUs, "
            f"the job has {fewest}"
        )
        yield view.problem("cluster.cpus_per_node", message, f"at least `cpus_per_node: {per * each:g}`")


def storage_place(view: View) -> Iterator[Problem]:
    """A place that checkpoints can be written to, judged by its name."""
    place = view.optional_text("checkpoint.storage")
    if place is None:
        return
    where = "checkpoint.storage"
    url = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", place)
    if url is None:
        if not place.startswith("/"):
            message = (
                f"`checkpoint.storage` is `{place}`, expected an absolute path or a URL such as `s3://bucket/path`"
            )
            yield view.problem(where, message, "a relative path would be a different directory for each process")
        return
    if url[1] not in BUCKET_SCHEMES:
        hint = f"expected one of {', '.join(f'`{scheme}://`' for scheme in BUCKET_SCHEMES)}, or an absolute path"
        yield view.problem(where, f"`checkpoint.storage` has the scheme `{url[1]}://`, which is not supported", hint)
    elif "@" in url[2] or "?" in url[2]:
        # The value is not repeated: it may hold a secret.
        message = "`checkpoint.storage` holds credentials or options, expected a bucket and a path"
        yield view.problem(where, message, "put credentials into the environment, so that no file stores them")
    elif not re.fullmatch(r"[a-z0-9][-a-z0-9._]*(/[^\s#]*)?", url[2]):
        hint = f"for example `{url[1]}://my-bucket/checkpoints`"
        yield view.problem(where, f"`checkpoint.storage` is `{place}`, which names no bucket", hint)


CHECKS = (
    range_in_order,
    batch_feeds_workers,
    micro_batch_fits,
    nodes_or_address,
    memory_parses,
    custom_names,
    variables_of_workers,
    fits_local_nodes,
    storage_place,
)
