"""How many CPU threads a worker computes with. Pure."""

from collections.abc import Mapping

THREADS_VARIABLE = "OMP_NUM_THREADS"
"""Read by OpenMP and torch when they are loaded. Ray sets it too, to the CPUs that it reserved."""
CHOSEN_VARIABLE = "CONVOY_THREADS_CHOSEN"
"""`0` in a worker whose `OMP_NUM_THREADS` is Convoy's own default and not the user's choice."""


def thread_environment(cpus: float, driver: Mapping[str, str]) -> dict[str, str]:
    """Variables of a worker process that reserves so many `cpus`: the user's number of threads, or one for each CPU."""
    chosen = driver.get(THREADS_VARIABLE)
    return {
        THREADS_VARIABLE: chosen or str(max(1, int(cpus))),
        CHOSEN_VARIABLE: str(int(bool(chosen))),
    }


def compute_threads(cpus: float, environment: Mapping[str, str]) -> int:
    """Threads of a worker; `environment` is its own."""
    return int(environment.get(THREADS_VARIABLE) or max(1, int(cpus)))


def offload_threads(cpus: float, environment: Mapping[str, str], host_cores: int, workers_on_host: int) -> int:
    """Threads of a worker on a GPU whose optimizer runs on the host: its share of the host's cores.

    Such an update touches 28 bytes a parameter in host memory, which takes one thread seconds for each billion
    parameters, while the GPU waits. The user's own choice is kept.
    """
    base = compute_threads(cpus, environment)
    chosen = THREADS_VARIABLE in environment and environment.get(CHOSEN_VARIABLE) != "0"
    return base if chosen else max(base, host_cores // max(1, workers_on_host))
