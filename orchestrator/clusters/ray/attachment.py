"""This process's connection to a Ray cluster, and what it knows through it about itself."""

import contextlib
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

from orchestrator.clusters.ray.processes import kept_signal_handlers
from orchestrator.domain.errors import ClusterError

NAMESPACE = "convoy"
GUARDED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def attach(address: str, loopback: bool) -> None:
    """Connect this process to Ray as a driver. `loopback`: the cluster listens nowhere else. Raises ClusterError."""
    import ray

    with kept_signal_handlers(GUARDED_SIGNALS), _loopback_allowed(loopback), _quiet():
        try:
            ray.init(
                address=address,
                namespace=NAMESPACE,
                log_to_driver=False,
                logging_level="ERROR",
                configure_logging=False,
            )
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise ClusterError(
                f"cannot join the Ray cluster at {address}: {error}",
                hint="run convoy on a node of the cluster, with the cluster's versions of Ray and Python",
            ) from error


def detach() -> None:
    """Disconnect this process. Idempotent."""
    import ray

    with contextlib.suppress(RuntimeError):
        ray.shutdown()


def logs_directory() -> Path:
    """Where the processes of this process's node write their logs; the directory for temporary files if Ray does not
    say."""
    import ray

    node = ray._private.worker.global_worker.node
    return Path(node.get_logs_dir_path() if node is not None else tempfile.gettempdir())


@contextlib.contextmanager
def _loopback_allowed(loopback: bool) -> Iterator[None]:
    """Ray replaces a loopback address by the machine's outer one, at which a loopback cluster does not listen."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    if loopback:
        ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ray warns about environment variables of accelerators that we set on purpose, and starts a thread that prints
    the cluster's errors to stdout, which is for data. We get both kinds of information in other ways."""
    import warnings

    from ray._private import worker

    listen, worker.listen_error_messages = worker.listen_error_messages, _print_nothing
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        worker.listen_error_messages = listen


def _print_nothing(worker: object, threads_stopped: object) -> None:
    """In place of Ray's thread that prints."""
