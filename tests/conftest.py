"""What tests of several folders share."""

import contextlib
import gc
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from orchestrator.clusters.ray.fork_server.fork_launch import VARIABLE, ForkServer
from orchestrator.domain.devices.device import ACCELERATOR_VARIABLE, CPU, GPU_DEFAULTS, RECOVERY_IN_PROCESS
from tests.cluster.gang_runs import own_temporary_directory
from tests.events import BROKEN_OBSERVERS
from tests.requirements import MISSING, required
from tests.session_server import is_alive, own_server, shared_server, starts_workers

CHANGED_BY_TESTS = (
    ACCELERATOR_VARIABLE, "PYTHONPATH", "HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE",
    "TRANSFORMERS_OFFLINE", *GPU_DEFAULTS, *RECOVERY_IN_PROCESS,
)  # fmt: skip
"""Variables for which a worker is rightly started without the fork server: some tests set them."""
FORKED = ("cluster", "faults", "soak")
"""Markers of tests that start workers."""


def pytest_configure(config: pytest.Config) -> None:
    """DeepSpeed in this very process uses the CPU, also on a machine with a GPU.

    Signals end processes, also if a script runs the tests in its background, where some signals are ignored: a process
    that a test starts inherits that.
    """
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    os.environ[ACCELERATOR_VARIABLE] = CPU
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # DeepSpeed does this, and every worker is to be told the same
    settings.register_profile("convoy", deadline=None)  # a busy machine is no defect
    settings.load_profile("convoy")
    try:
        required(os.environ)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker:  # each of several test processes has its own directory
        own = Path(f"/tmp/cx-{os.getppid()}-{worker}")
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir(mode=0o700)
        os.environ["TMPDIR"] = tempfile.tempdir = str(own)
        # Torch would put it below the directory of the first test that needs it, and use it after that one is gone.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(own / "inductor")
    else:  # after the others have ended: multiprocessing removes files of its own when a process exits
        config.add_cleanup(lambda: [shutil.rmtree(own, True) for own in Path("/tmp").glob(f"cx-{os.getpid()}-*")])
        if config.getoption("numprocesses", None) and VARIABLE not in os.environ and starts_workers(config.args):
            server = contextlib.ExitStack()
            server.enter_context(own_server(os.environ))
            config.add_cleanup(server.close)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of faults first: the longest ones, and those that wait, which others use the processors for."""
    items.sort(key=lambda item: 0 if item.get_closest_marker("faults") else 1)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is loaded by now stays: the garbage collector need not look at torch again and again."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what cannot run here, and say why; fail if it was said that it can. See `requirements`."""
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            problem = MISSING[name]()
            if problem is not None and name in required(os.environ):
                pytest.fail(f"{name} is required: {problem}", pytrace=False)
            elif problem is not None:
                pytest.skip(f"{name}: {problem}")


@pytest.fixture(scope="session", autouse=True)
def fork_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ForkServer | None]:
    """One fork server for the local clusters of all tests: the imports are paid once. `stock_workers` leaves it out."""
    tmp_path_factory.getbasetemp()  # before a test changes the directory for temporary files
    if VARIABLE in os.environ:
        yield shared_server(os.environ)
    elif any(item.get_closest_marker(name) for item in request.session.items for name in FORKED):
        with own_server(os.environ) as server:
            yield server
    else:
        yield None


@pytest.fixture(autouse=True)
def forked(fork_server: ForkServer | None) -> Iterator[None]:
    """A test whose workers start without the fork server is slow, and does not test what it seems to."""
    before = fork_server.refusals() if fork_server is not None else 0
    yield
    if fork_server is None:
        return
    assert is_alive(os.environ), "the fork server of the test session has ended"
    reason = fork_server.bypassed()
    if reason is not None and fork_server.refusals() != before:
        foreign = [name for name in re.findall(r"[A-Z_]{3,}", reason) if name not in CHANGED_BY_TESTS]
        assert reason.startswith("the worker's environment"), reason
        assert foreign == [], reason


@pytest.fixture(autouse=True)
def sound_observers() -> Iterator[None]:
    """A run goes on without an observer that raises; its test must not."""
    BROKEN_OBSERVERS.clear()
    yield
    assert BROKEN_OBSERVERS == []


@pytest.fixture
def stock_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers start as on a cluster that somebody else started: each imports everything itself."""
    monkeypatch.setenv("CONVOY_FORK_SERVER", "0")


@pytest.fixture
def temporary_directory(tmp_path: Path) -> Iterator[Path]:
    """See `own_temporary_directory`. After `tmp_path`, which is made under the usual one."""
    with own_temporary_directory() as directory:
        yield directory
