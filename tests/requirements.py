"""What some tests need beyond Python. A test that needs something marks it: `@pytest.mark.needs("promtool")`.

Without it the test is skipped with the reason. If `CONVOY_TEST_REQUIRE` lists it (names separated by commas), the test
fails instead.
"""

import ctypes.util
import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from orchestrator.drill import limited_disk, node_network

VARIABLE = "CONVOY_TEST_REQUIRE"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def _promtool() -> str | None:
    return None if shutil.which("promtool") else "promtool is not installed; it comes with Prometheus"


def _prometheus() -> str | None:
    return None if shutil.which("prometheus") else "prometheus is not installed"


def _grafana_sdk() -> str | None:
    found = importlib.util.find_spec("grafana_foundation_sdk")
    return None if found else "grafana-foundation-sdk is not installed; it comes with the extra `dev`"


def _tensorboard() -> str | None:
    found = importlib.util.find_spec("tensorboard")
    return None if found else "tensorboard is not installed: pip install 'convoy-train[tensorboard]'"


def _wandb() -> str | None:
    return None if importlib.util.find_spec("wandb") else "wandb is not installed: pip install 'convoy-train[wandb]'"


def _chromium() -> str | None:
    found = any(shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return None if found else "Chromium is not installed"


def _root() -> str | None:
    return None if os.geteuid() == 0 else "only root may do this"


def _not_root() -> str | None:
    return None if os.geteuid() != 0 else "root may do everything"


def _corpora() -> str | None:
    return None if SHARED.is_dir() else f"no corpora in {SHARED}"


def _cpu_adam() -> str | None:
    cache = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache/torch_extensions")
    if list(cache.rglob("cpu_adam.so")):
        return None
    return f"DeepSpeedCPUAdam is not built in {cache}; building it takes a minute or two"


def _compiler() -> str | None:
    return None if shutil.which("g++") else "g++ is not installed"


def _cuda() -> str | None:
    return None if ctypes.util.find_library("cuda") else "no CUDA driver"


MISSING: Mapping[str, Callable[[], str | None]] = {
    "promtool": _promtool,
    "prometheus": _prometheus,
    "grafana_sdk": _grafana_sdk,
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "chromium": _chromium,
    "root": _root,
    "not_root": _not_root,
    "mounts": limited_disk.why_not,
    "networks": node_network.why_not,
    "corpora": _corpora,
    "cpu_adam": _cpu_adam,
    "compiler": _compiler,
    "cuda": _cuda,
}
"""By name: why it is not there; None if it is."""


def required(env: Mapping[str, str]) -> frozenset[str]:
    """The names that must not be missing. Raises ValueError for a name that is none."""
    names = frozenset(name.strip() for name in env.get(VARIABLE, "").split(",") if name.strip())
    unknown = sorted(names - MISSING.keys())
    if unknown:
        raise ValueError(f"{VARIABLE} names {', '.join(unknown)}; there are {', '.join(sorted(MISSING))}")
    return names
