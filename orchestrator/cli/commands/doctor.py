"""`convoy doctor`: check this machine and a cluster; report what is missing and how to get it."""

import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import click

from orchestrator.cli.commands.machine_checks import Check, build_checks, machine_checks, network_checks, package_checks
from orchestrator.cli.display import formatting
from orchestrator.cli.options import home_option, json_option
from orchestrator.clusters.ray.gpus import count_gpus
from orchestrator.json_values import (
    JsonFields,
    JsonObject,
    JsonShapeError,
    array,
    flag,
    integer,
    mapping,
    number,
    objects,
    optional,
    parse_object,
    text,
    text_mapping,
)

ENGINE_TIMEOUT_S = 120
CLUSTER_TIMEOUT_S = 60
HUB_TIMEOUT_S = 3
_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "missing": ("✗", "red"), "info": ("·", "bright_black")}


@click.command()
@click.option("--address", metavar="HOST:PORT", help="Also check this Ray cluster.")
@click.option("--fast", is_flag=True, help="Skip the checks that take seconds: the engine and the network.")
@home_option
@json_option
@click.pass_context
def doctor(ctx: click.Context, address: str | None, fast: bool, home: Path, as_json: bool) -> None:
    """Check this machine and a cluster: report what works, what is missing and how to get it.

    Exit code 1 if something is missing that training needs.

    \b
    Examples:
      convoy doctor
      convoy doctor --address 10.0.0.5:6379
      convoy doctor --json | jq '.checks[] | select(.status == "missing")'
    """
    checks: list[Check] = []
    printed: set[str] = set()
    for check in _all_checks(home, address, fast, show_waiting=not as_json and sys.stderr.isatty()):
        checks.append(check)
        if not as_json:
            _print(check, printed)
    missing = [check for check in checks if check.status == "missing"]
    if as_json:
        value = {"ok": not missing, "checks": [vars(check) for check in checks]}
        click.echo(json.dumps(value, indent=2))
    else:
        warnings = sum(check.status == "warning" for check in checks)
        click.echo("")
        if missing:
            click.echo(f"Not ready: {', '.join(check.name for check in missing)} ({warnings} warnings)")
        else:
            click.echo(f"Ready to train ({warnings} warnings)")
    ctx.exit(1 if missing else 0)


def _print(check: Check, printed: set[str]) -> None:
    if check.group not in printed:
        printed.add(check.group)
        click.echo(("\n" if len(printed) > 1 else "") + click.style(check.group, bold=True))
    mark, color = _MARKS[check.status]
    click.echo(f"  {click.style(mark, fg=color)} {check.name:<18} {check.value}")
    if check.hint:
        click.echo(f"    {click.style('->', fg=color)} {check.hint}")


def _all_checks(home: Path, address: str | None, fast: bool, show_waiting: bool) -> Iterator[Check]:
    yield from machine_checks(home)
    yield from package_checks()
    yield from build_checks()
    if not fast:
        with _waiting("importing torch, DeepSpeed and transformers", show_waiting):
            facts = _run_facts([sys.executable, "-m", "orchestrator.train.library_facts"], ENGINE_TIMEOUT_S)
        yield from engine_checks(facts, count_gpus())
        yield from _nvidia()
    yield from network_checks()
    if not fast:
        with _waiting("asking the Hugging Face hub", show_waiting):
            hub = _hub()
        yield hub
    if address is not None:
        with _waiting(f"connecting to {address}", show_waiting):
            yield from cluster_checks(address)


def _waiting(what: str, show: bool) -> AbstractContextManager[object]:
    """A spinner while something takes seconds."""
    if not show:
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(what)


def _run_facts(command: list[str], timeout_s: float) -> JsonObject:
    """The JSON object a module of facts prints; `{"error": ...}` if it did not."""
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {timeout_s:g} s"}
    try:
        return parse_object(done.stdout.strip().rpartition("\n")[2])
    except JsonShapeError:
        last = done.stderr.strip().rpartition("\n")[2] or "no output"
        return {"error": f"exit code {done.returncode}: {last}"}


def engine_checks(facts: JsonFields, present: int = 0) -> Iterator[Check]:
    """What the engine found: importable, devices, operators that could be built. `present`: GPUs of this machine, as
    the driver lists them."""
    if "error" in facts:
        yield Check(
            "engine",
            "import",
            "missing",
            text(facts, "error"),
            "reinstall Convoy with its dependencies; in a checkout: make clean install",
        )
        return
    for name, error in text_mapping(facts, "errors").items():
        yield Check("engine", name, "missing", error, f"reinstall it: pip install --force-reinstall {name}")
    if "torch" not in facts:
        return
    yield from _gpu_checks(mapping(facts, "cuda"), present)
    if "accelerator" in facts:
        yield Check("engine", "accelerator", "ok", f"{facts['accelerator']}, {facts['threads']} threads per process")
    uses = {
        "cpu_adam": "zero.offload_optimizer on the CPU",
    }
    for name, buildable in (optional(mapping, facts, "ops") or {}).items():
        use = uses.get(name, "")
        yield Check(
            "engine", name, "ok" if buildable else "info", f"{'can' if buildable else 'cannot'} be built: {use}"
        )


def _gpu_checks(cuda: JsonFields, present: int) -> Iterator[Check]:
    """Each GPU that torch sees, whether it works, and what it takes for a job to use it."""
    devices = objects(cuda, "devices")
    for index, device in enumerate(devices):
        memory = formatting.size(integer(device, "memory_bytes"))
        shown = f"{text(device, 'name')}, {memory}, compute capability {device['capability']}"
        shown += ", bf16" if flag(device, "bf16") else ", no bf16"
        peers = array(device, "peers")
        shown += f", peers {', '.join(map(str, peers))}" if peers else ""
        why = optional(text, device, "why")
        if why:
            hint = optional(text, device, "hint")
            yield Check("engine", f"GPU {index}", "warning", f"{shown}; cannot be used: {why}", hint)
        else:
            yield Check("engine", f"GPU {index}", "ok", shown)
    if devices:
        hidden = f"{len(devices)} of {present} visible to this process; " if present > len(devices) else ""
        use = "a job trains on GPUs if it has resources.gpus_per_worker: 1, else on the CPU"
        yield Check("engine", "GPUs", "info", hidden + use)
    elif present:
        shown = f"{present} in this machine, none can be used: {cuda.get('why') or 'torch sees none'}"
        yield Check("engine", "GPU", "warning", shown, optional(text, cuda, "hint"))
    else:
        build = f"built for CUDA {cuda['version']}" if cuda["version"] else "the CPU build"
        yield Check("engine", "GPU", "info", f"none that torch ({build}) can use: training on the CPU, without fp16")


def _nvidia() -> Iterator[Check]:
    """Driver and links as the driver's own tool reports them; nothing if there is no such tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    for name, command in (("driver", query), ("NVLink", [tool, "nvlink", "--status"])):
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired) as error:
            yield Check("engine", name, "warning", f"nvidia-smi does not answer: {error}")
            return
        lines = done.stdout.strip().splitlines()
        if name == "driver":
            ok = done.returncode == 0 and bool(lines)
            yield Check("engine", name, "ok" if ok else "warning", lines[0] if ok else done.stderr.strip() or "no GPU")
        else:
            links = sum("GB/s" in line for line in lines)
            yield Check("engine", name, "info", f"{links} links up" if links else "no links")


def _hub() -> Check:
    """Whether models and data sets can be fetched; a job from local files needs none of it."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return Check("network", "Hugging Face", "info", "HF_HUB_OFFLINE is set: only cached files can be used")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    hint = "jobs that name a hub id will fail; local files work. A mirror can be set with HF_ENDPOINT"
    try:
        request = urllib.request.Request(endpoint, method="HEAD", headers={"User-Agent": "convoy-doctor"})
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S):
            return Check("network", "Hugging Face", "ok", f"{endpoint} answers")
    except urllib.error.HTTPError as error:
        status = error.code
        error.close()
        return Check("network", "Hugging Face", "ok", f"{endpoint} answers (status {status})")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return Check("network", "Hugging Face", "warning", f"{endpoint} cannot be reached: {reason}", hint)


def cluster_checks(address: str) -> Iterator[Check]:
    """The Ray cluster at an address: whether a run could join it, its nodes and what is free."""
    facts = _run_facts([sys.executable, "-m", "orchestrator.clusters.ray.cluster_facts", address], CLUSTER_TIMEOUT_S)
    if "error" in facts:
        hint = optional(text, facts, "hint") or "both sides need the same versions of Ray and Python"
        yield Check("cluster", address, "missing", text(facts, "error"), hint)
        return
    nodes = objects(facts, "nodes")
    yield Check("cluster", address, "ok", f"Ray {facts['ray']}, {len(nodes)} nodes")
    for index, node in enumerate(nodes):
        free, total = resources(mapping(node, "free")), resources(mapping(node, "total"))
        yield Check("cluster", f"node {index}", "info", f"{node['address']}: {free} free, of {total}")


def resources(amounts: JsonFields) -> str:
    """`4 CPU, 1 GPU, 12.0 GiB memory`."""
    shown = []
    for name in sorted(amounts):
        amount = number(amounts, name)
        in_bytes = name in ("memory", "object_store_memory")
        shown.append(f"{formatting.size(amount)} {name.replace('_', ' ')}" if in_bytes else f"{amount:g} {name}")
    return ", ".join(shown) or "nothing"
