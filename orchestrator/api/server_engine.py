"""The queue of a server with all that moves it: database, lease, cluster, drivers, ticks."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import psutil

from orchestrator.api.leased_drivers import LeasedDrivers
from orchestrator.api.server_files import ServerFiles
from orchestrator.api.server_settings import ServerConfig, ServerSettings
from orchestrator.api.webhooks.webhook_sender import WebhookSender, WebhookTarget, read_secret
from orchestrator.clusters.ray.gpus import gpus_for
from orchestrator.clusters.ray.local.keeper_files import KeptNodes
from orchestrator.control.cluster.kept_cluster import ensure_cluster
from orchestrator.control.cluster.observed_cluster import ObservedCluster, kept_address
from orchestrator.control.drivers.driver_environment import driver_environment, is_listed
from orchestrator.control.drivers.driver_processes import DriverProcesses
from orchestrator.control.live_queue import LiveQueue
from orchestrator.control.policy.decide import decide
from orchestrator.control.policy.queue_facts import QueueShare
from orchestrator.control.queue_board import QueueBoard
from orchestrator.control.queue_store.queue_store import QueueStore
from orchestrator.control.queue_store.queue_table import put_queue
from orchestrator.control.server_lease import ServerLease
from orchestrator.control.server_paths import ServerPaths
from orchestrator.control.submitting import SubmitSettings
from orchestrator.control.ticker import Ticker, TickerPorts
from orchestrator.domain.queue.queue_states import QueueState
from orchestrator.lasting_thread import repeating
from orchestrator.run.launcher import ENGINE_MODULES
from orchestrator.store.run_store import RunStore
from orchestrator.store.uploads.file_store import FileStore

KEEP_S = 5.0
"""From one look whether the local cluster is there to the next."""
Log = Callable[[str], None]


@contextlib.contextmanager
def queue_engine(
    settings: ServerSettings, files: ServerFiles, store: QueueStore, uploads: FileStore,
    environ: Mapping[str, str], log: Log,
) -> Iterator[LiveQueue]:  # fmt: skip
    """The queue, until the end of the context. Drivers and a local cluster outlive it. `environ`: of this process."""
    config = settings.config
    environment = driver_environment(environ, config.variables)
    runs, board = RunStore(settings.home), QueueBoard()
    with contextlib.ExitStack() as stack:
        _store_queues(store, config)
        if config.address is None:
            stack.enter_context(_kept(files, config, environment, log))
        find = kept_address(files.cluster) if config.address is None else lambda: config.address
        cluster = ObservedCluster(find, environment)
        stack.callback(cluster.close)
        lease = ServerLease(store)
        stack.callback(lease.close)
        drivers = LeasedDrivers(lambda: lease.token, lambda token: DriverProcesses(settings.home, token, environment))
        stack.callback(drivers.close)
        ticker = Ticker(store, lease, runs, TickerPorts(drivers, cluster, decide, log=log), board)
        submitting = SubmitSettings(
            variables=job_variables(environ, config.variables),
            paths=ServerPaths(settings.roots),
            files=uploads,
            storage=config.storage,
        )
        queue = LiveQueue(store, runs, board, cluster, submitting, ticker.wake)
        ticker.start()
        stack.callback(ticker.close)
        for sender in _webhooks(settings, files, store, lease, log):
            sender.start()
            stack.callback(sender.close)
        yield queue


def job_variables(environ: Mapping[str, str], listed: list[str]) -> dict[str, str]:
    """What `${NAME}` in a job may name: the listed variables; a name that ends in `*` lists all that begin so. Pure."""
    return {name: value for name, value in environ.items() if is_listed(name, listed)}


def kept_nodes(config: ServerConfig, cpus: int, memory_bytes: int, gpus: tuple[str, ...]) -> KeptNodes:
    """The local cluster: this machine's resources, divided by its nodes. Pure."""
    each = config.cpus_per_node or max(1.0, cpus // config.nodes)
    resources = {"CPU": float(each), "memory": float(memory_bytes // config.nodes)}
    return KeptNodes(config.nodes, resources, gpus, ENGINE_MODULES)


def _store_queues(store: QueueStore, config: ServerConfig) -> None:
    for name, each in config.queues.items():
        share = QueueShare(name, each.weight, dict(each.quota), dict(each.limit))
        store.write(partial(put_queue, share=share))


def _webhooks(
    settings: ServerSettings, files: ServerFiles, store: QueueStore, lease: ServerLease, log: Log
) -> list[WebhookSender]:
    """Raises UsageError if a secret cannot be used."""
    senders = []
    for each in settings.config.webhooks:
        secret = read_secret(Path(each.secret_file).expanduser())
        target = WebhookTarget(each.url, secret, frozenset(QueueState(state) for state in each.states))
        place = files.folder / f"webhook-{hashlib.sha256(each.url.encode()).hexdigest()[:16]}.json"
        senders.append(WebhookSender(store, target, place, lambda: lease.token is not None, log))
    return senders


def _kept(
    files: ServerFiles, config: ServerConfig, environment: Mapping[str, str], log: Log
) -> contextlib.AbstractContextManager[None]:
    """Start the local cluster, and again if it dies. It stays at the end."""
    available = psutil.virtual_memory().available
    kept = kept_nodes(config, os.cpu_count() or 1, available, gpus_for(1, environment, log))
    return repeating("keep the local cluster", lambda: ensure_cluster(files.cluster, kept, environment), KEEP_S, log)
