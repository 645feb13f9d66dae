"""`convoy durability`: what a run would lose if a node failed now."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from orchestrator.atomic_files import read_json
from orchestrator.cli.commands.runs_commands import table
from orchestrator.cli.display import formatting
from orchestrator.cli.options import home_option, json_option, run_argument
from orchestrator.domain.errors import UsageError
from orchestrator.store.run_store import RunRecord, RunStore

WATCH_S = 1.0
STALE_S = 10.0
"""The driver surveys its vaults every 2 s; an older survey means that no driver is active."""


@click.command()
@run_argument
@click.option("-w", "--watch", is_flag=True, help="Keep showing it until the run ends.")
@home_option
@json_option
def durability(run: str, watch: bool, home: Path, as_json: bool) -> None:
    """Show what a run would lose if a node failed now.

    Shows the copies of each worker's state by tier (memory of its own node, memory of peers, storage), the steps at
    risk, and the nodes whose loss the state in memory would not survive. The driver surveys the nodes every 2
    seconds.

    \b
    Examples:
      convoy durability last
      convoy durability last --watch
      convoy durability last --json | jq .steps_at_risk
    """
    store = RunStore(home)
    record = store.read(run)
    if not watch:
        click.echo(_shown(record, as_json))
    elif as_json or not sys.stdout.isatty():
        _follow(store, record, as_json)
    else:
        _live(store, record)


def facts(record: RunRecord, now_s: float) -> dict[str, Any]:
    """`durability.json` of the run, and how current it is: `age_s`, `stale`. Raises UsageError without one."""
    value: dict[str, Any] | None = read_json(record.layout.durability)
    if value is None:
        hint = "it is written once the workers have started" if record.active else "it ended before it trained"
        raise UsageError(f"run {record.id} ({record.status}) has no {record.layout.durability.name}", hint=hint)
    age_s = now_s - float(value.get("time_s") or 0.0)
    kept_until_s = None
    if not record.active and (record.lost or value.get("kept")) and value.get("memory_kept_s"):
        kept_until_s = float(value.get("over_s") or value["time_s"]) + float(value["memory_kept_s"])
    return {
        "run": record.id,
        "state": record.status,
        "age_s": age_s,
        "stale": not record.active or age_s > STALE_S,
        "memory_kept_until_s": kept_until_s if kept_until_s is not None and kept_until_s > now_s else None,
        **value,
    }


def text(value: dict[str, Any]) -> str:
    """The facts for people."""
    lines = [f"{value['run']}  {value['state']}, step {value['step']}", *_staleness(value)]
    if value["memory_kept_until_s"] is None and value["state"] in ("succeeded", "failed", "stopped", "lost"):
        left = f"step {value['storage_step']}, on storage" if value["storage_step"] else "nothing"
        return "\n".join([*lines, f"  what is left   {left}"])
    lines += [_risk(value), *_node_loss(value), "", *_tiers(value), "", *_shards(value), *_nodes(value)]
    return "\n".join(lines)


def _shown(record: RunRecord, as_json: bool) -> str:
    value = facts(record, time.time())
    return json.dumps(value, indent=2) if as_json else text(value)


def _follow(store: RunStore, record: RunRecord, as_json: bool) -> None:
    """A line of JSON, or a paragraph, for each survey."""
    seen: float | None = None
    while True:
        record = store.read(str(record.directory.absolute()))
        value: dict[str, Any] | None = read_json(record.layout.durability)
        if value is not None and value.get("time_s") != seen:
            seen = value.get("time_s")
            now = facts(record, time.time())
            click.echo(json.dumps(now) if as_json else text(now) + "\n")
        if not record.active:
            return
        time.sleep(WATCH_S)


def _live(store: RunStore, record: RunRecord) -> None:
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False) as live:
        while True:
            record = store.read(str(record.directory.absolute()))
            try:
                shown = _shown(record, as_json=False)
            except UsageError as error:
                shown = f"{error.message}: {error.hint}"
            live.update(Text(shown), refresh=True)
            if not record.active:
                return
            time.sleep(WATCH_S)


def _staleness(value: dict[str, Any]) -> list[str]:
    seen = f"as of {formatting.when(value['time_s'])}"
    until_s = value["memory_kept_until_s"]
    if until_s is not None:
        return [
            f"  STALE: {seen}; no driver is active. Its nodes keep the memory until {formatting.when(until_s)}: "
            "continue from there with `convoy run --resume`",
        ]
    if value["state"] == "lost":
        return [f"  STALE: {seen}; its driver is gone, and so is the memory of its nodes"]
    if value["stale"] and value["over_s"] is not None:
        return ["  the run has ended: the memory of its nodes was freed"]
    if value["stale"]:
        return [f"  STALE: {seen}, {formatting.ago(value['age_s'])}: its driver does not survey its nodes"]
    return []


def _risk(value: dict[str, Any]) -> str:
    steps, safe = value["steps_at_risk"], value["safe_step"]
    after = f"step {safe}" if safe else "the beginning"
    what = f"{steps} step{'' if steps == 1 else 's'}"
    return f"  at risk now    {what}: after the loss of any one node it would continue from {after}"


def _node_loss(value: dict[str, Any]) -> list[str]:
    """What losing a node costs at this model's size; nothing if that is not known, or was not by then."""
    loss = value.get("node_loss")
    if not loss:
        return []
    steps = loss["repeated_steps"]
    text = (
        f"  node loss      at most {steps} step{'' if steps == 1 else 's'} recomputed "
        f"({formatting.duration(loss['repeated_s'])}), "
        f"{formatting.duration(loss['read_s'])} to read the state from peers"
    )
    copied = loss["copied_s"]
    return [text + (f", {formatting.duration(copied)} more until all copies exist again" if copied else "")]


def _tiers(value: dict[str, Any]) -> list[str]:
    tiers = (("memory, own node", "own_step"), ("memory, peers", "peers_step"), ("storage", "storage_step"))
    rows: list[tuple[str, ...]] = [("TIER", "", "NEWEST COMPLETE STEP")]
    rows += [(name, "", "none" if value[key] is None else str(value[key])) for name, key in tiers]
    return table(rows).split("\n")


def _shards(value: dict[str, Any]) -> list[str]:
    if not value["shards"]:
        return ["no step is complete in memory", ""]
    rows: list[tuple[str, ...]] = [("RANK", "OWN NODE", "COPIES", "ON")]
    for shard in value["shards"]:
        own = ", ".join(map(_short, shard["own"])) or "lost"
        rows.append((str(shard["rank"]), own, str(shard["copies"]), ", ".join(map(_short, shard["peers"])) or "-"))
    return [f"step {value['copies_step']} in memory:", *table(rows).split("\n"), ""]


def _nodes(value: dict[str, Any]) -> list[str]:
    if not value["nodes"]:
        return ["no node keeps state in memory"]
    rows: list[tuple[str, ...]] = [("NODE", "ADDRESS", "MEMORY", "RANKS", "IF LOST")]
    for node in value["nodes"]:
        ranks = ",".join(map(str, node["ranks"])) or "-"
        answers = "" if node["answers"] else " (silent)"
        rows.append(
            (_short(node["node"]), node["host"] + answers, formatting.size(node["memory_bytes"]), ranks, _if(node))
        )
    lines = table(rows).split("\n")
    if value["planned_bytes"] is not None:
        lines.append(f"planned: {formatting.size(value['planned_bytes'])} on a node")
    lines += [
        f"{_short(node['node'])}: {formatting.printable(node['problem'])}" for node in value["nodes"] if node["problem"]
    ]
    unrecoverable = [_short(node) for node in value["unrecoverable"]]
    if unrecoverable:
        lines.append(f"the state in memory would not survive the loss of: {', '.join(unrecoverable)}")
    return lines


def _if(node: dict[str, Any]) -> str:
    if node["memory_step"] is not None and node["memory_step"] >= node["from_step"]:
        return f"step {node['from_step']}, memory"
    return f"step {node['from_step']}, storage" if node["from_step"] else "the beginning"


def _short(node: str) -> str:
    return node[:8]
