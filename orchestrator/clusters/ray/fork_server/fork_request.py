"""What a client asks of the fork server, and what stands against a fork. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_REQUEST_BYTES = 1 << 20
"""Of one request: Linux limits arguments and environment to about that by default, too."""

SAFE_PREFIXES = ("RAY_", "CONVOY_", "AWS_", "GOOGLE_", "AZURE_", "PYTEST_")
"""Read when they are used, by modules that are imported after the fork (Ray) or by our own code."""
SAFE_NAMES = frozenset(
    {
        # The shell's and the terminal's.
        "PWD", "OLDPWD", "SHLVL", "_", "TERM", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR",
        # Set by Ray, for the names of its processes and for a debugger that is looked up when it is called.
        "SPT_NOENV", "PYTHONBREAKPOINT",
        # `tempfile` is reset after the fork.
        "TMPDIR",
        # CUDA reads its mask at the first call, which comes after the fork.
        "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES",
        # torch sets it, and reads it, when it compiles.
        "TORCHINDUCTOR_CACHE_DIR",
        # gloo and NCCL read them when a process group is made.
        "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "NCCL_HOSTID",
    }
)  # fmt: skip

SHARED_NAMESPACES = ("ipc", "mnt", "pid", "user", "uts")
"""A process that is forked is in those of the server; `net` alone is changed for it."""


@dataclass(frozen=True)
class ForkRequest:
    """A process to fork: what to run, and what the process that asks has."""

    argv: tuple[str, ...]
    """The worker script and its arguments."""
    env: dict[str, str]
    cwd: str
    umask: int
    namespaces: dict[str, int]
    """Inodes by name, as in `/proc/self/ns`."""

    @classmethod
    def from_json(cls, data: bytes) -> "ForkRequest":
        """Raises ValueError if `data` is no request."""
        try:
            value = json.loads(data)
            return cls(
                argv=tuple(str(item) for item in value["argv"]),
                env={str(name): str(text) for name, text in value["env"].items()},
                cwd=str(value["cwd"]),
                umask=int(value["umask"]),
                namespaces={str(name): int(inode) for name, inode in value["namespaces"].items()},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a request: {error}") from None


def changed_variables(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Names of variables that differ and that a preloaded module may have read already, sorted."""
    names = {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}
    return sorted(name for name in names if name not in SAFE_NAMES and not name.startswith(SAFE_PREFIXES))


def obstacle(env: Mapping[str, str], namespaces: Mapping[str, int], request: ForkRequest) -> str | None:
    """Why a server with this environment and these namespaces cannot fork what is requested; None if it can."""
    changed = changed_variables(env, request.env)
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        return f"the worker's environment has other values of {', '.join(changed[:3])}{more}"
    others = [name for name in SHARED_NAMESPACES if namespaces.get(name) != request.namespaces.get(name)]
    if others:
        return f"the worker's node is in another namespace: {', '.join(others)}"
    return None


def unfit(threads: int, loaded: Sequence[str], device_opened: bool) -> str | None:
    """Why a process that has preloaded its modules must not fork; None if it may. `loaded`: top-level modules."""
    if threads != 1:
        return f"the preloaded process has {threads} threads, and a fork copies only one"
    if "ray" in loaded:
        return "a preloaded module imports Ray, which reads its settings from the environment when it is loaded"
    if device_opened:
        return "a preloaded module uses the GPU, whose state cannot be forked"
    return None
