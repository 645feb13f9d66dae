"""What this machine is, found without importing anything heavy: the checks of `convoy doctor` that take no time."""

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from orchestrator.cli.display import formatting

Status = Literal["ok", "warning", "missing", "info"]
GIB = 1024**3
NEEDED_FOR = "needed only for zero.offload_optimizer, which DeepSpeed compiles at first use"
STALE_LOCK_S = 600.0
"""No operator takes this long to build; its lock was left by a build that was killed."""


@dataclass(frozen=True)
class Check:
    """One finding. `missing`: training cannot work as things are. `warning`: something will be slow, or not work."""

    group: str
    name: str
    status: Status
    value: str
    hint: str | None = None


def machine_checks(home: Path) -> Iterator[Check]:
    """The host: system, Python, cores, memory, shared memory, disk, limits."""
    yield Check("machine", "system", "ok" if sys.platform == "linux" else "missing", platform.platform())
    version = platform.python_version()
    supported = (3, 11) <= sys.version_info[:2] < (3, 14)
    yield Check("machine", "python", "ok" if supported else "missing", f"{version} ({sys.executable})")
    cores = len(os.sched_getaffinity(0))
    quota = _cpu_quota()
    text = f"{cores} usable of {os.cpu_count()}" + (f", limited to {quota:g} by the container" if quota else "")
    yield Check("machine", "cores", "ok", text)
    yield Check("machine", "cpu", "info", _cpu_text())
    yield _memory()
    yield _free_space("/dev/shm", Path("/dev/shm"), 1 * GIB, "Ray keeps its objects there: docker run --shm-size=4g")
    # The home may not be there yet: what counts is the disk it will be on.
    existing = next(path for path in (home.absolute(), *home.absolute().parents) if path.exists())
    yield _free_space("disk for runs", existing, 5 * GIB, "checkpoints and data shards go there; see CONVOY_HOME")
    yield _free_space("disk for /tmp", Path("/tmp"), 2 * GIB, "Ray keeps its logs and spilled objects there")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft != resource.RLIM_INFINITY and soft < 4096
    hint = f"ulimit -n {min(65536, hard) if hard > 0 else 65536}" if few else None
    yield Check("machine", "open files", "warning" if few else "ok", f"at most {soft}", hint)


def _cpu_quota() -> float | None:
    """CPUs the cgroup (version 2) allows, None if it does not say."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _cpu_text() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "sve")
    having = [flag for flag in wanted if flag in flags]
    bf16 = "bf16 in hardware" if {"avx512_bf16", "amx_bf16"} & flags else "bf16 emulated (slow)"
    return f"{fields.get('model name', platform.machine())}: {', '.join(having) or 'no vector extensions'}; {bf16}"


def _memory() -> Check:
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    text = f"{formatting.size(available)} free of {formatting.size(total)}"
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        limit, used = "max", 0
    if limit.isdecimal() and int(limit) < total:
        available = min(available, int(limit) - used)
        text = f"{formatting.size(available)} free of {formatting.size(int(limit))} (the container's limit)"
    few = available < 3 * GIB
    hint = "a worker takes about 1 GiB before the model; use fewer workers" if few else None
    return Check("machine", "memory", "warning" if few else "ok", text, hint)


def _free_space(name: str, path: Path, wanted_bytes: int, hint: str) -> Check:
    try:
        usage = shutil.disk_usage(path)
    except OSError as error:
        return Check("machine", name, "warning", f"{path}: {error.strerror}", hint)
    few = usage.free < wanted_bytes
    text = f"{formatting.size(usage.free)} free of {formatting.size(usage.total)}"
    return Check("machine", name, "warning" if few else "ok", text, hint if few else None)


def package_checks() -> Iterator[Check]:
    """Versions of what training stands on: in the range that is supported, and the same as was tested."""
    tested = _tested_versions()
    ranges = _ranges()
    for name in ("torch", "ray", "deepspeed", "transformers", "datasets", "tokenizers", "numpy", "safetensors"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Check("packages", name, "missing", "not installed", f"pip install '{name}{ranges.get(name, '')}'")
            continue
        public = version.partition("+")[0]
        if not _in_range(public, ranges.get(name, "")):
            fix = f"supported is {ranges[name]}: pip install '{name}{ranges[name]}'"
            yield Check("packages", name, "warning", version, fix)
        else:
            other = tested.get(name, public) != public
            yield Check("packages", name, "ok", version + (f" (tested with {tested[name]})" if other else ""))


def _ranges() -> dict[str, str]:
    """Version ranges from this package's own metadata."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("convoy-train") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    requirements = [Requirement(line) for line in lines if "extra ==" not in line]
    return {requirement.name: str(requirement.specifier) for requirement in requirements}


def _in_range(version: str, specifier: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(specifier).contains(version, prereleases=True)


def _tested_versions() -> dict[str, str]:
    """From `constraints.txt`, which a source checkout has."""
    try:
        lines = (Path(__file__).parents[3] / "constraints.txt").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name.strip(): version.strip() for name, _, version in pairs}


def build_checks() -> Iterator[Check]:
    """What DeepSpeed's operators are built with at first use, and builds that were left half done."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    found = compiler is not None and shutil.which(compiler) is not None
    yield Check(
        "operators",
        "C++ compiler",
        "ok" if found else "warning",
        str(compiler) if found else f"none ({compiler or 'c++, g++'})",
        None if found else f"{NEEDED_FOR}: apt-get install g++, or set CXX",
    )
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    yield Check(
        "operators",
        "Python headers",
        "ok" if header.exists() else "warning",
        str(header.parent) if header.exists() else f"no {header}",
        None
        if header.exists()
        else f"{NEEDED_FOR}: apt-get install python{sys.version_info[0]}.{sys.version_info[1]}-dev",
    )
    ninja = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    hint = None if ninja else f"{NEEDED_FOR}: pip install ninja"
    yield Check("operators", "ninja", "ok" if ninja else "warning", ninja or "none", hint)
    yield from _built_operators(time.time())


def extensions_root() -> Path:
    """Directory in which torch builds extensions."""
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    return Path(given) if given else Path.home() / ".cache" / "torch_extensions"


def _built_operators(now_s: float) -> Iterator[Check]:
    root = extensions_root()
    built = sorted({library.stem for library in root.glob("**/*.so")})
    if built:
        yield Check("operators", "built", "ok", f"{', '.join(built)} ({root})")
    else:
        text = f"none yet in {root}: the first run compiles them, which takes 1 to 2 minutes"
        yield Check("operators", "built", "info", text)
    for lock in root.glob("**/lock"):
        try:
            age_s = now_s - lock.stat().st_mtime
        except FileNotFoundError:
            continue
        stale = age_s > STALE_LOCK_S
        text = f"{lock} is {formatting.clock(age_s)} old" + ("" if stale else ": a build is in progress")
        hint = f"left by a killed build; every start waits for it: rm {lock}" if stale else None
        yield Check("operators", "lock", "missing" if stale else "info", text, hint)


def network_checks() -> Iterator[Check]:
    """Loopback, the ports of Ray, this host's own name."""
    try:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        yield Check("network", "loopback", "ok", f"ports can be bound (got {port})")
    except OSError as error:
        yield Check("network", "loopback", "missing", f"no port can be bound: {error.strerror}")
    name = socket.gethostname()
    try:
        yield Check("network", "host name", "ok", f"{name} is {socket.gethostbyname(name)}")
    except OSError:
        hint = f"add `127.0.1.1 {name}` to /etc/hosts: workers find each other by address"
        yield Check("network", "host name", "warning", f"{name} has no address", hint)
    for port, what in ((6379, "Ray's control port"), (8265, "Ray's dashboard")):
        with socket.socket() as probe:
            probe.settimeout(0.5)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                yield Check("network", f"port {port}", "info", f"{what} is in use: a cluster may be running here")
