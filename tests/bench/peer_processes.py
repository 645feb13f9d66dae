"""Processes of the peers: started with a private cache of built operators, bounded in time, ended to the last child."""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

from tests.bench.measure import Finished, environment, run

PEERS = Path(__file__).with_name("peers")


def say(text: str) -> None:
    """Progress, on stderr: stdout has the tables."""
    print(f"  {text}", file=sys.stderr, flush=True)


def extensions_copy(into: Path) -> dict[str, str]:
    """Environment that points torch at a copy of the operators built so far.

    A process that is killed while it loads one leaves a lock file that blocks every later start: not in the cache
    that others use.
    """
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    built = Path(given) if given else Path.home() / ".cache/torch_extensions"
    private = into / "torch_extensions"
    if built.is_dir() and not private.exists():
        shutil.copytree(built, private, ignore=shutil.ignore_patterns("lock"))
    flavour = private if given else next(iter(sorted(private.glob("py*"))), private)
    return {"TORCH_EXTENSIONS_DIR": str(flavour)}


def run_state(
    what: str, directory: Path, model: str, stage: int, workers: int, timeout_s: float, *options: str
) -> Finished:
    """Run `peers/deepspeed_state.py` with this many ranks (`convert`: one plain process), its memory watched."""
    script = [str(PEERS / "deepspeed_state.py"), what, "--directory", str(directory)]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    command = [sys.executable, *(launcher if what != "convert" else []), *script]
    # The launcher leaves a folder in the directory for temporary files.
    env = environment({"TMPDIR": str(directory.parent), **extensions_copy(directory.parent)})
    # The script ends itself first, with its stacks: they say where it hung.
    arguments = ["--stage", str(stage), "--model", model, "--limit-s", str(timeout_s), *options]
    return run([*command, *arguments], env, watch_memory=what == "convert", timeout_s=timeout_s + 30)


def end_processes(pids: Iterable[int]) -> None:
    """SIGKILL these and wait: stopped ones and those whose parent is gone too."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            process.kill()
            found.append(process)
    psutil.wait_procs(found, timeout=10)


def with_environment(name: str, value: str) -> list[int]:
    """Processes that carry this variable: ours, where the value is a directory made for this one run."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(name) == value:
                found.append(process.pid)
    return found
