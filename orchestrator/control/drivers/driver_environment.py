"""The environment of driver processes: what Convoy, Ray and the libraries of training need, and what the operator
lists. The server's own variables, secrets among them, stay with the server."""

from collections.abc import Collection, Mapping

from orchestrator.clusters.ray.ray_settings import VARIABLES

PASSED = frozenset(
    {
        "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
        "SSL_CERT_FILE", "SSL_CERT_DIR", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM",
        "TRANSFORMERS_OFFLINE", "XDG_CACHE_HOME",
    }
)  # fmt: skip
PASSED_PREFIXES = (
    "LC_", "PYTHON", "CONVOY_", VARIABLES, "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "NCCL_", "GLOO_", "TORCH", "PYTORCH_",
    "MALLOC_", "HF_", "DS_",
)  # fmt: skip
SECRET_WORDS = ("TOKEN", "SECRET", "PASSWORD", "CREDENTIAL", "_KEY")
NEEDED_SECRETS = frozenset({"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "CONVOY_METRICS_TOKEN"})
"""To join a cluster that requires it, and to serve a run's metrics."""


def driver_environment(own: Mapping[str, str], listed: Collection[str] = ()) -> dict[str, str]:
    """The variables that drivers get. `own`: of this process; `listed`: names, or beginnings of names that end in `*`,
    that the operator allows besides."""
    return {name: value for name, value in own.items() if _is_passed(name) or is_listed(name, listed)}


def _is_passed(name: str) -> bool:
    if name in PASSED or name in NEEDED_SECRETS:
        return True
    return name.startswith(PASSED_PREFIXES) and not any(word in name for word in SECRET_WORDS)


def is_listed(name: str, listed: Collection[str]) -> bool:
    """Whether the operator allows a variable: by its name, or by a beginning of it that ends in `*`. Pure."""
    return any(name == each or (each.endswith("*") and name.startswith(each[:-1])) for each in listed)
