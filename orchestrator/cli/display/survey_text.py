"""The newest survey of a run's vaults, as `convoy durability` shows it."""

from dataclasses import dataclass

from orchestrator.atomic_files import read_json
from orchestrator.checkpoint.survey.durability import Durability, NodeLoss
from orchestrator.cli.display import formatting
from orchestrator.domain.errors import UsageError
from orchestrator.json_values import JsonObject, JsonShapeError
from orchestrator.store.run_store import RunRecord

STALE_S = 10.0
"""The driver surveys its vaults every 2 s; an older survey means that no driver is active."""


@dataclass(frozen=True)
class Survey:
    """A survey, and how current it is."""

    run_id: str
    status: str
    age_s: float
    stale: bool
    """It no longer says what the nodes hold."""
    memory_kept_until_s: float | None
    """Unix time until which the nodes keep the state without a driver; None if they do not."""
    durability: Durability
    recorded: JsonObject
    """`durability.json`."""

    def to_json(self) -> JsonObject:
        """For `--json`: the file, and how current it is."""
        return {
            "run": self.run_id,
            "state": self.status,
            "age_s": self.age_s,
            "stale": self.stale,
            "memory_kept_until_s": self.memory_kept_until_s,
            **self.recorded,
        }


def survey_of(record: RunRecord, now_s: float) -> Survey:
    """The newest survey of the run. Raises UsageError if there is none, or if it cannot be read."""
    path = record.layout.durability
    recorded = read_json(path)
    if recorded is None:
        hint = "it is written once the workers have started" if record.active else "it ended before it trained"
        raise UsageError(f"run {record.id} ({record.status}) has no {path.name}", hint=hint)
    try:
        found = Durability.from_json(recorded)
    except JsonShapeError as error:
        raise UsageError(f"{path}: {error}", hint="another version of Convoy wrote it: use that one") from None
    until_s = None
    if not record.active and (record.lost or found.kept) and found.memory_kept_s:
        until_s = (found.over_s or found.time_s) + found.memory_kept_s
    age_s = now_s - found.time_s
    stale = not record.active or age_s > STALE_S
    kept_until_s = until_s if until_s is not None and until_s > now_s else None
    return Survey(record.id, record.status, age_s, stale, kept_until_s, found, recorded)


def survey_text(seen: Survey) -> str:
    """The survey for people."""
    found = seen.durability
    lines = [f"{seen.run_id}  {seen.status}, step {found.step}", *_staleness(seen)]
    if seen.memory_kept_until_s is None and seen.status in ("succeeded", "failed", "stopped", "lost"):
        left = f"step {found.storage_step}, on storage" if found.storage_step else "nothing"
        return "\n".join([*lines, f"  what is left   {left}"])
    lines += [_risk(found), *_node_loss(found), "", *_tiers(found), "", *_shards(found), *_nodes(found)]
    return "\n".join(lines)


def _staleness(seen: Survey) -> list[str]:
    shown = f"as of {formatting.when(seen.durability.time_s)}"
    until_s = seen.memory_kept_until_s
    if until_s is not None:
        return [
            f"  STALE: {shown}; no driver is active. Its nodes keep the memory until {formatting.when(until_s)}: "
            "continue from there with `convoy run --resume`",
        ]
    if seen.status == "lost":
        return [f"  STALE: {shown}; its driver is gone, and so is the memory of its nodes"]
    if seen.stale and seen.durability.over_s is not None:
        return ["  the run has ended: the memory of its nodes was freed"]
    if seen.stale:
        return [f"  STALE: {shown}, {formatting.ago(seen.age_s)}: its driver does not survey its nodes"]
    return []


def _risk(found: Durability) -> str:
    steps, safe = found.steps_at_risk, found.safe_step
    after = f"step {safe}" if safe else "the beginning"
    what = f"{steps} step{'' if steps == 1 else 's'}"
    return f"  at risk now    {what}: after the loss of any one node it would continue from {after}"


def _node_loss(found: Durability) -> list[str]:
    """What losing a node costs at this model's size; nothing if that was not known."""
    loss = found.node_loss
    if not loss:
        return []
    steps = round(loss["repeated_steps"])
    text = (
        f"  node loss      at most {steps} step{'' if steps == 1 else 's'} recomputed "
        f"({formatting.duration(loss['repeated_s'])}), "
        f"{formatting.duration(loss['read_s'])} to read the state from peers"
    )
    copied_s = loss["copied_s"]
    return [text + (f", {formatting.duration(copied_s)} more until all copies exist again" if copied_s else "")]


def _tiers(found: Durability) -> list[str]:
    tiers = (("memory, own node", found.own_step), ("memory, peers", found.peers_step), ("storage", found.storage_step))
    rows: list[tuple[str, ...]] = [("TIER", "", "NEWEST COMPLETE STEP")]
    rows += [(name, "", "none" if step is None else str(step)) for name, step in tiers]
    return formatting.table(rows).split("\n")


def _shards(found: Durability) -> list[str]:
    if not found.shards:
        return ["no step is complete in memory", ""]
    rows: list[tuple[str, ...]] = [("RANK", "OWN NODE", "COPIES", "ON")]
    for shard in found.shards:
        own = ", ".join(map(_short, shard.own)) or "lost"
        rows.append((str(shard.rank), own, str(shard.copies), ", ".join(map(_short, shard.peers)) or "-"))
    return [f"step {found.copies_step} in memory:", *formatting.table(rows).split("\n"), ""]


def _nodes(found: Durability) -> list[str]:
    if not found.nodes:
        return ["no node keeps state in memory"]
    rows: list[tuple[str, ...]] = [("NODE", "ADDRESS", "MEMORY", "RANKS", "IF LOST")]
    for node in found.nodes:
        ranks = ",".join(map(str, node.ranks)) or "-"
        answers = "" if node.answers else " (silent)"
        rows.append((_short(node.node), node.host + answers, formatting.size(node.memory_bytes), ranks, _if_lost(node)))
    lines = formatting.table(rows).split("\n")
    if found.planned_bytes is not None:
        lines.append(f"planned: {formatting.size(found.planned_bytes)} on a node")
    lines += [f"{_short(node.node)}: {formatting.printable(node.problem)}" for node in found.nodes if node.problem]
    unrecoverable = [_short(node) for node in found.unrecoverable]
    if unrecoverable:
        lines.append(f"the state in memory would not survive the loss of: {', '.join(unrecoverable)}")
    return lines


def _if_lost(node: NodeLoss) -> str:
    if node.memory_step is not None and node.memory_step >= node.from_step:
        return f"step {node.from_step}, memory"
    return f"step {node.from_step}, storage" if node.from_step else "the beginning"


def _short(node: str) -> str:
    return node[:8]
