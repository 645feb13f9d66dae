"""One frame of `convoy top`: lines of text for a terminal of any width, with or without colours. Pure."""

import time
from collections.abc import Sequence

from rich.text import Text

from orchestrator.cli.display import formatting
from orchestrator.cli.display.plain_display import describe
from orchestrator.cli.display.run_view import ShownRun
from orchestrator.domain.ranks.rank_report import RankReport
from orchestrator.json_values import JsonFields
from orchestrator.run_facts.lenient_json import list_of_objects, whole_or_none
from orchestrator.run_facts.live_run import LiveFacts, LivePace
from orchestrator.run_facts.step_point import PHASES

LEAST_WIDTH = 60
SHOWN_RANKS = 8
"""Ranks with a line of their own: of more, those with the most memory."""
SHOWN_EVENTS = 8
_NAME = 8
"""Width of the names on the left."""
_STATE_STYLES = {"succeeded": "green", "failed": "bold red", "stopped": "yellow", "waiting": "bold yellow",
                 "recovering": "bold yellow", "lost": "bold red", "running": "cyan"}  # fmt: skip
_PHASE_LETTERS = {"data_wait": "d", "forward": "f", "backward": "b", "optimizer": "o", "checkpoint": "c",
                  "snapshot": "s"}  # fmt: skip
_PHASE_STYLES = {"data_wait": "yellow", "forward": "cyan", "backward": "blue", "optimizer": "magenta",
                 "checkpoint": "red", "snapshot": "green"}  # fmt: skip


def run_frame(facts: LiveFacts, now_s: float, width: int, height: int | None = None) -> Text:
    """One run. `width` in characters, at least `LEAST_WIDTH`; of the events as many as `height` leaves room for."""
    width = max(LEAST_WIDTH, width)
    record, last = facts.record, facts.last
    lines = [_title(facts, now_s, width), _progress_line(facts, width)]
    if last is None:
        lines.append(_line("", "no step yet"))
    else:
        lines += [_loss_line(facts, width), _speed_line(facts)]
        if facts.pace is not None:
            lines += _phase_lines(facts.pace, width)
        lines += _memory_lines(facts, width)
    lines += _safety_lines(facts, now_s) + _gang_lines(facts, now_s)
    if record.reason:
        lines.append(_line("reason", _one_line(record.reason)))
    room = SHOWN_EVENTS if height is None else max(1, min(SHOWN_EVENTS * 2, height - len(lines) - 2))
    lines += _event_lines(facts, room)
    return _joined(lines, width)


def fleet_frame(runs: Sequence[LiveFacts], now_s: float, width: int) -> Text:
    """All runs, a line for each."""
    width = max(LEAST_WIDTH, width)
    active = sum(facts.record.active for facts in runs)
    head = Text.assemble(("convoy top", "bold"), f"  {active} of {len(runs)} runs active  ", _clock(now_s))
    if not runs:
        return _joined([head, Text(""), Text("no runs here; start one with `convoy run job.yaml`")], width)
    id_width = max(16, min(34, width - 58))
    columns = f"{'RUN':<{id_width}} {'STATE':<10} {'STEP':>13} {'LOSS':>8} {'TOK/S':>8} {'W':>4} {'LEFT':>8}"
    spark = width - len(columns) - 1
    lines = [head, Text(columns + ("  TREND" if spark > 7 else ""), style="dim")]
    return _joined(lines + [_fleet_line(facts, id_width, spark) for facts in runs], width)


def _fleet_line(facts: LiveFacts, id_width: int, spark: int) -> Text:
    record = facts.record
    step = f"{record.step:,}/{record.total_steps:,}" if record.total_steps else f"{record.step:,}"
    line = Text(f"{_shortened(record.id, id_width):<{id_width}} ")
    line.append(f"{record.status:<10}", style=_STATE_STYLES.get(record.status, ""))
    left = formatting.clock(facts.eta_s) if facts.eta_s is not None else formatting.DASH
    line.append(
        f" {step:>13} {formatting.loss(record.loss):>8} {formatting.count(record.progress.tokens_per_s):>8}"
        f" {record.progress.workers or formatting.DASH:>4} {left:>8}"
    )
    if spark > 7:
        line.append(f"  {formatting.sparkline(facts.losses, spark - 2)}", style="cyan")
    return line


def _title(facts: LiveFacts, now_s: float, width: int) -> Text:
    record = facts.record
    title = Text.assemble((record.id, "bold"), "  ", (record.status, _STATE_STYLES.get(record.status, "")))
    end_s = now_s if record.active else record.updated_s
    title.append(f"  {formatting.clock(max(0.0, end_s - record.created_s))}", style="dim")
    clock = _clock(now_s)
    gap = width - title.cell_len - len(clock)
    if gap > 1:
        title.append(" " * gap + clock, style="dim")
    return title


def _progress_line(facts: LiveFacts, width: int) -> Text:
    record, total = facts.record, facts.record.total_steps
    if not total:
        return _line("step", f"{record.step:,}")
    left = "" if facts.eta_s is None else f"  {formatting.clock(facts.eta_s)} left"
    share = min(1.0, record.step / total)
    figures = f"{record.step:,}/{total:,}"
    bar = max(10, width - _NAME - len(figures) - len(left) - 10)
    line = _line("step", f"{figures}  ")
    line.append(formatting.bar(share, bar), style="cyan")
    line.append(f"  {share:.0%}{left}")
    return line


def _loss_line(facts: LiveFacts, width: int) -> Text:
    record = facts.record
    text = formatting.loss(record.loss) if record.loss is not None else "nan"
    if record.validation_loss is not None:
        text += f"  val {formatting.loss(record.validation_loss)}"
    line = _line("loss", text + "  ")
    since = "" if facts.whole else "..."
    line.append(since + formatting.sparkline(facts.losses, max(8, width - line.cell_len - len(since))), style="cyan")
    return line


def _speed_line(facts: LiveFacts) -> Text:
    last, pace = facts.last, facts.pace
    parts = []
    if pace is not None:
        parts += [f"{formatting.count(pace.tokens_per_s)} tokens/s", f"{formatting.duration(pace.step_time_s)}/step"]
    if last is not None and last.mfu is not None:
        parts.append(f"MFU {last.mfu:.1%}")
    if last is not None and last.lr is not None:
        parts.append(f"lr {last.lr:.2e}")
    if last is not None and last.epoch is not None:
        parts.append(f"epoch {last.epoch:.2f}")
    return _line("speed", "  ".join(parts))


def _phase_lines(pace: LivePace, width: int) -> list[Text]:
    """The phases of the newest steps: a bar whose letters say the phase without colours, and the shares."""
    bar, room = Text(), width - _NAME
    for phase, share in zip(PHASES, pace.phase_shares, strict=True):
        bar.append(_PHASE_LETTERS[phase] * round(min(1.0, max(0.0, share)) * room), style=_PHASE_STYLES[phase])
    bar.truncate(room)
    bar.append("." * (room - bar.cell_len), style="dim")
    shown = [(phase, share) for phase, share in zip(PHASES, pace.phase_shares, strict=True) if share >= 0.005]
    shares = "  ".join(f"{phase.replace('_', ' ')} {share:.0%}" for phase, share in shown)
    return [_line("phases", "").append_text(bar), _line("", shares)]


def _memory_lines(facts: LiveFacts, width: int) -> list[Text]:
    last, ranks = facts.last, facts.ranks
    if last is None or not last.memory_max_bytes:
        return []
    where = "GPU" if last.on_gpus else "RSS"
    total, most = formatting.size(last.memory_total_bytes), formatting.size(last.memory_max_bytes)
    lines = [_line("memory", f"{total} {where} at peak in all, most {most} in a worker")]
    peaks = [(_peak_bytes(rank), rank.rank) for rank in ranks]
    shown = sorted(sorted(peaks, reverse=True)[:SHOWN_RANKS], key=lambda each: each[1])
    highest, bar = max((peak for peak, _ in peaks), default=0), max(8, width - _NAME - 22)
    for peak, rank in shown:
        line = _line("", f"{rank:>4}  {formatting.size(peak):>10}  ")
        lines.append(line.append(formatting.bar(peak / highest if highest else 0.0, bar), style="green"))
    if len(peaks) > len(shown):
        lines.append(_line("", f"and {len(peaks) - len(shown)} workers with less"))
    return lines


def _peak_bytes(rank: RankReport) -> int:
    device = rank.memory.peak_allocated_bytes
    return rank.memory.peak_rss_bytes if device is None else device


def _safety_lines(facts: LiveFacts, now_s: float) -> list[Text]:
    value = facts.durability
    if value is None or not facts.record.active:
        saved = facts.events.checkpoints
        return [_line("safe", f"checkpoint of step {max(each.step for each in saved):,}")] if saved else []
    own, peers, stored = (_step_of(value, name) for name in ("own_step", "peers_step", "storage_step"))
    risk = whole_or_none(value, "steps_at_risk") or 0
    line = _line("safe", f"step {own} in memory, {peers} with its copies, {stored} on storage; ")
    line.append(f"{risk} step{'' if risk == 1 else 's'} at risk", style="green" if risk <= 2 else "yellow")
    silent = [node for node in list_of_objects(value, "nodes") if node.get("answers") is False]
    if silent:
        line.append(f"; {len(silent)} node{'' if len(silent) == 1 else 's'} silent", style="bold yellow")
    return [line]


def _step_of(value: JsonFields, name: str) -> str:
    step = whole_or_none(value, name)
    return "none" if step is None else f"{step:,}"


def _gang_lines(facts: LiveFacts, now_s: float) -> list[Text]:
    periods, totals = facts.events.periods, facts.events.totals
    lines = []
    if periods.generations:
        gang = periods.generations[-1]
        lines.append(
            _line(
                "gang",
                f"generation {gang.number}: {gang.world_size} worker{'' if gang.world_size == 1 else 's'},"
                f" micro batch {gang.micro_batch} x {gang.accumulation},"
                f" since {formatting.clock(max(0.0, (gang.ended_s or now_s) - gang.started_s))}",
            )
        )
    if totals.recoveries:
        lines.append(_line("recov.", formatting.recoveries(list(facts.events.recoveries))))
    return lines


def _event_lines(facts: LiveFacts, room: int) -> list[Text]:
    view, newest = ShownRun(), []
    for event in facts.newest_events:
        view.on_event(event)
        text = describe(event.body, view)
        if text:
            newest.append((event.time_s, _one_line(text)))
    if not newest:
        return []
    lines = [Text("")]
    for time_s, text in newest[-room:]:
        line = Text(time.strftime("%H:%M:%S", time.localtime(time_s)), style="dim")
        lines.append(line.append(f"  {text}", style=""))
    return lines


def _line(name: str, text: str) -> Text:
    return Text.assemble((f"{name:<{_NAME}}", "dim"), text)


def _joined(lines: Sequence[Text], width: int) -> Text:
    """The lines, each cut to the width."""
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return Text("\n", no_wrap=True).join(lines)


def _one_line(text: str) -> str:
    return " ".join(formatting.printable(text).split())


def _shortened(text: str, width: int) -> str:
    """Its beginning and its end: names begin alike, and dates end differently."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[-tail:]}"


def _clock(now_s: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(now_s))
