"""What trackers need, found out before a run begins: their packages, and a key."""

import importlib.util
import netrc
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.spec.job import JobSpec
from orchestrator.spec.loading.load import LoadedJob, place_of_value
from orchestrator.spec.spec_errors import Problem, SpecError

DEFAULT_HOST = "api.wandb.ai"


def check_trackers(job: LoadedJob, env: Mapping[str, str]) -> None:
    """Raises SpecError, at the tracker's section, if its package is not installed or it has no key."""
    problems = []
    for name, (message, hint) in missing(job.spec, env).items():
        key = f"logging.{name}"
        problems.append(Problem(place_of_value(job, key), f"`{key}`: {message}", hint))
    if problems:
        raise SpecError(tuple(problems))


def missing(spec: JobSpec, env: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """By tracker: what it lacks, and what to do."""
    wanted = wanted_trackers(spec, env)
    found = {}
    for name in wanted:
        if importlib.util.find_spec(name) is None:
            hint = f"pip install 'convoy-train[{name}]', or remove `logging.{name}`"
            found[name] = (f"the package {name} is not installed", hint)
    if "wandb" in wanted and "wandb" not in found and wandb_mode(spec, env) == "online" and not _has_key(env):
        hint = "export WANDB_API_KEY, run `wandb login` once, or set `mode: offline`"
        found["wandb"] = ("there is no API key for Weights & Biases", hint)
    return found


def wanted_trackers(spec: JobSpec, env: Mapping[str, str]) -> list[str]:
    """Keys of `logging` whose trackers the run has."""
    wanted = ["tensorboard"] if spec.logging.tensorboard is not None else []
    if spec.logging.wandb is not None and wandb_mode(spec, env) != "disabled":
        wanted.append("wandb")
    return wanted


def wandb_mode(spec: JobSpec, env: Mapping[str, str]) -> str:
    """online, offline or disabled."""
    wandb = spec.logging.wandb
    return (wandb.mode if wandb is not None else None) or env.get("WANDB_MODE") or "online"


def _has_key(env: Mapping[str, str]) -> bool:
    """Where wandb looks for it: the environment, and the file that `wandb login` writes. Its value is not looked at."""
    if env.get("WANDB_API_KEY") or env.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(env.get("WANDB_BASE_URL", "")).hostname or DEFAULT_HOST
    home = Path(env.get("HOME") or "~").expanduser()
    for path in (Path(env["NETRC"]) if env.get("NETRC") else None, home / ".netrc", home / "_netrc"):
        try:
            if path is not None and netrc.netrc(path).authenticators(host) is not None:
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False
