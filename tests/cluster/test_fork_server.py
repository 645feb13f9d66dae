"""The fork server with real processes, without Ray: what a forked process inherits, and what dies with what."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.clusters.ray.fork_server.fork_launch import VARIABLE, ForkServer, find_fork_server, start_fork_server
from orchestrator.clusters.ray.local.local_cluster import LocalCluster
from orchestrator.clusters.ray.node_processes import descendants

pytestmark = pytest.mark.cluster

PATIENCE_S = 20.0
WORKER = """
import json, os, random, sys, time
out, ending = sys.argv[1:3]
facts = {
    "pid": os.getpid(), "parent": os.getppid(), "argv": sys.argv, "cwd": os.getcwd(), "path": sys.path[0],
    "env": dict(os.environ), "umask": os.umask(0), "preloaded": "wave" in sys.modules, "name": __name__,
    "group": os.getpgid(0),
    "random": random.random(), "stdin": sys.stdin.read(), "net": os.stat("/proc/self/ns/net").st_ino,
}
print("worker says hello", flush=True)
open(out + ".partial", "w").write(json.dumps(facts))
os.rename(out + ".partial", out)
if ending == "sleep":
    time.sleep(600)
sys.exit(int(ending))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """Stands for Ray's worker: it writes down what it has."""
    path = tmp_path / "worker" / "script.py"
    path.parent.mkdir()
    path.write_text(WORKER)
    return path


@pytest.fixture
def server(temporary_directory: Path) -> Iterator[ForkServer]:
    started = start_fork_server(temporary_directory, ["wave", "no_such_module"], dict(os.environ))
    yield started
    started.close()


def client(server: ForkServer, script: Path, out: Path, ending: str, **options: Any) -> subprocess.Popen[str]:
    """What a raylet would start for a worker."""
    stock = [sys.executable, str(stub(script)), str(script)]
    return subprocess.Popen(
        server.command([*stock, str(out), ending]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def stub(script: Path) -> Path:
    """Stands for Ray's setup_worker.py."""
    path = script.with_name("setup.py")
    path.write_text("import os, sys\nos.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n")
    return path


def facts(out: Path) -> dict[str, Any]:
    wait_for(out.exists)
    value: dict[str, Any] = json.loads(out.read_text())
    return value


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_forked_process_has_everything_of_its_client(server: ForkServer, script: Path, tmp_path: Path) -> None:
    out, home = tmp_path / "facts.json", tmp_path / "home"
    home.mkdir()
    own = {**os.environ, "RAY_JOB_ID": "01", "CUDA_VISIBLE_DEVICES": "7"}
    asked = client(server, script, out, "3", env=own, cwd=home, umask=0o027)
    said, _ = asked.communicate("typed", timeout=PATIENCE_S)
    found = facts(out)
    assert server.process is not None
    assert (found["parent"], found["preloaded"], found["name"]) == (server.process.pid, True, "__main__")
    assert (found["cwd"], found["umask"], found["stdin"]) == (str(home), 0o027, "typed")
    assert (found["argv"], found["path"]) == ([str(script), str(out), "3"], str(script.parent))
    assert said == "worker says hello\n"
    assert asked.returncode == 3
    assert found["group"] == found["pid"], "Ray signals the process group of a worker that ends"
    assert {name: found["env"][name] for name in ("RAY_JOB_ID", "CUDA_VISIBLE_DEVICES")} == {
        "RAY_JOB_ID": "01",
        "CUDA_VISIBLE_DEVICES": "7",
    }
    assert "OPENBLAS_NUM_THREADS" not in found["env"].keys() - os.environ.keys()
    assert server.bypassed() is None


def test_processes_differ_in_their_random_numbers_and_die_alone(
    server: ForkServer, script: Path, tmp_path: Path
) -> None:
    outs = [tmp_path / f"{index}.json" for index in range(3)]
    clients = [client(server, script, out, "sleep") for out in outs]
    for asked in clients:
        assert asked.stdin is not None
        asked.stdin.close()
    found = [facts(out) for out in outs]
    assert len({each["random"] for each in found}) == 3
    ours = {process.pid for process in descendants(os.getpid())}
    assert ours >= {each["pid"] for each in found}
    os.kill(found[0]["pid"], signal.SIGKILL)  # a worker dies: its client says so, the others live
    assert clients[0].wait(PATIENCE_S) == 128 + signal.SIGKILL
    clients[1].kill()  # a client dies, as with its raylet: its worker does, too
    wait_for(lambda: gone(found[1]["pid"]))
    clients[2].terminate()  # a signal is passed on
    assert clients[2].wait(PATIENCE_S) == 128 + signal.SIGTERM
    out = tmp_path / "after.json"
    assert client(server, script, out, "0").communicate("", timeout=PATIENCE_S)
    assert facts(out)["preloaded"]


def test_everything_ends_with_the_server(server: ForkServer, script: Path, tmp_path: Path) -> None:
    out = tmp_path / "facts.json"
    asked = client(server, script, out, "sleep")
    assert asked.stdin is not None
    asked.stdin.close()
    pid = facts(out)["pid"]
    server.close()
    assert asked.wait(PATIENCE_S) == 1
    wait_for(lambda: gone(pid))


DRIVER = """
import os, sys, time
from pathlib import Path
from orchestrator.clusters.ray.fork_server.fork_launch import start_fork_server
print(start_fork_server(Path(sys.argv[1]), ["wave"], dict(os.environ)).process.pid, flush=True)
time.sleep(600)
"""


def test_everything_ends_with_a_driver_that_is_killed(script: Path, temporary_directory: Path, tmp_path: Path) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(temporary_directory)], stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    pid = int(driver.stdout.readline())
    out = tmp_path / "facts.json"
    asked = client(ForkServer(temporary_directory / "forks"), script, out, "sleep")
    assert asked.stdin is not None
    asked.stdin.close()
    worker = facts(out)["pid"]
    driver.kill()
    driver.wait()
    wait_for(lambda: gone(pid) and gone(worker))
    assert asked.wait(PATIENCE_S) == 1


def test_another_environment_starts_the_worker_without_the_server(
    server: ForkServer, script: Path, tmp_path: Path
) -> None:
    out = tmp_path / "facts.json"
    asked = client(server, script, out, "4", env={**os.environ, "HF_HOME": "/elsewhere"})
    asked.communicate("", timeout=PATIENCE_S)
    found = facts(out)
    assert (asked.returncode, found["preloaded"], found["env"]["HF_HOME"]) == (4, False, "/elsewhere")
    assert server.bypassed() == "the worker's environment has other values of HF_HOME"
    cluster = LocalCluster(1, {})
    cluster._forks = server
    warnings = [cluster.start_warning(), cluster.start_warning()]
    assert warnings == [f"worker processes start without the fork server: {server.bypassed()}", None]


@pytest.mark.parametrize(("module", "words"), [("threaded", "2 threads"), ("ray", "imports Ray")])
def test_a_server_that_must_not_fork_says_why(
    module: str, words: str, script: Path, temporary_directory: Path, tmp_path: Path
) -> None:
    (tmp_path / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    server = start_fork_server(temporary_directory, [module], env)
    out = tmp_path / "facts.json"
    asked = client(server, script, out, "0", env=env)
    asked.communicate("", timeout=PATIENCE_S)
    assert (asked.returncode, facts(out)["preloaded"]) == (0, False)
    assert words in (server.bypassed() or "")
    assert server.process is not None
    assert server.process.wait(PATIENCE_S) == 1


def test_what_is_no_request_does_no_harm(server: ForkServer, script: Path, tmp_path: Path) -> None:
    import socket

    for data in (b"", b"\xff\xff\xff\xff", b"\x00\x00\x00\x02[]", b"GET / HTTP/1.1\r\n\r\n"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(server.socket))
            connection.sendall(data)
    out = tmp_path / "facts.json"
    client(server, script, out, "0").communicate("", timeout=PATIENCE_S)
    assert facts(out)["preloaded"]


@pytest.mark.needs("networks")
def test_a_worker_is_in_the_network_namespace_of_its_node(server: ForkServer, script: Path, tmp_path: Path) -> None:
    out = tmp_path / "facts.json"
    asked = client(server, script, out, "0", preexec_fn=_unshare_network)
    asked.communicate("", timeout=PATIENCE_S)
    found = facts(out)
    assert found["preloaded"]
    assert found["net"] != Path("/proc/self/ns/net").stat().st_ino


def _unshare_network() -> None:
    import ctypes

    assert ctypes.CDLL(None).unshare(0x40000000) == 0


def test_the_environment_decides_whether_there_is_one(temporary_directory: Path) -> None:
    def found(value: str | None, modules: list[str]) -> ForkServer | None:
        named = {} if value is None else {VARIABLE: value}
        return find_fork_server(temporary_directory, modules, named, dict(os.environ))

    assert found("0", ["wave"]) is None
    assert found(None, []) is None
    assert found("/run/forks", []) == ForkServer(Path("/run/forks"))
    started = found(None, ["wave"])
    assert started is not None
    started.close()


def test_the_client_imports_next_to_nothing() -> None:
    """It is started for every worker: what it imports is paid each time."""
    code = textwrap.dedent(
        """
        import runpy, sys
        before = set(sys.modules)
        runpy.run_path(sys.argv[1], run_name="client")
        print(len(set(sys.modules) - before), "typing" in sys.modules)
        """
    )
    path = Path(__file__).parents[2] / "orchestrator/clusters/ray/fork_server/fork_client.py"
    said = subprocess.run([sys.executable, "-I", "-S", "-c", code, str(path)], capture_output=True, text=True)
    assert int(said.stdout.split()[0]) < 45, said.stdout + said.stderr
