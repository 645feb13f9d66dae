"""What several dashboards share: selectors, colours, thresholds, variables, links."""

from orchestrator.dashboards.panel_values import Annotation, Panel, Query, Threshold, Variable

FLEET_UID, RUN_UID, GOODPUT_UID = "convoy-fleet", "convoy-run", "convoy-goodput"
RELIABILITY_UID, GPUS_UID = "convoy-reliability", "convoy-gpus"

GOOD, NOTICE, BAD = "semi-dark-green", "dark-orange", "red"
"""The three that judge. These shades can be read as text in Grafana's dark and light theme."""
MAIN, SECOND, THIRD, QUIET = "blue", "light-blue", "purple", "#8e8e99"
"""The others judge nothing. `QUIET`: what is there for comparison."""

TIERS = (("own", "a worker"), ("peers", "a node"), ("storage", "the whole cluster"))
"""The tiers of `convoy_tier_step`, and what their states survive the loss of."""
STATE_COLORS = {
    "preparing": MAIN,
    "starting": MAIN,
    "running": GOOD,
    "recovering": NOTICE,
    "waiting": NOTICE,
    "succeeded": MAIN,
    "stopped": "text",
    "failed": BAD,
}

JOB = Variable("job", "Job", "label_values(convoy_run_info, job)")
RUNS = Variable("run", "Run", 'label_values(convoy_run_info{job=~"$job"}, run)', newest_first=True)
ONE_RUN = Variable("run", "Run", 'label_values(convoy_run_info{job=~"$job"}, run)', several=False, newest_first=True)
RANK = Variable("rank", "Rank", 'label_values(convoy_worker_rss_bytes{job=~"$job",run=~"$run"}, rank)')


_CHOSEN = ('job=~"$job"', 'run=~"$run"')


def sel(metric: str, *matchers: str) -> str:
    """The series of the chosen jobs and runs: `metric{job=~"$job",run=~"$run",...}`."""
    return f"{metric}{{{','.join((*_CHOSEN, *matchers))}}}"


def latest(metric: str, *by: str, matchers: tuple[str, ...] = ()) -> str:
    """One series for each value of the labels. A driver that is resumed has another address, which is not shown."""
    return f"max{_by(by)}({sel(metric, *matchers)})"


def rate(metric: str, *by: str, matchers: tuple[str, ...] = ()) -> str:
    """Increase per second of a counter."""
    return f"sum{_by(by)}(rate({sel(metric, *matchers)}[$__rate_interval]))"


def total(metric: str, *by: str, matchers: tuple[str, ...] = ()) -> str:
    """Whole increase of a counter of events in the range that is shown."""
    return f"round(sum{_by(by)}(increase({sel(metric, *matchers)}[$__range])))"


def quantile(share: float, histogram: str) -> str:
    """Of the observations of a histogram, estimated from its buckets."""
    return f"histogram_quantile({share}, {rate(histogram + '_bucket', 'le')})"


def weighted_goodput() -> str:
    """Goodput of several runs together: each weighs by its workers' time."""
    time_s = sel("convoy_worker_time_seconds")
    return f"sum({latest('convoy_goodput_ratio', 'run')} * on (run) sum by (run) ({time_s})) / sum({time_s})"


def _by(labels: tuple[str, ...]) -> str:
    return f" by ({', '.join(labels)}) " if labels else ""


def rising(*limits: tuple[float, str]) -> tuple[Threshold, ...]:
    """Green up to the first limit."""
    return (Threshold(None, GOOD), *(Threshold(value, color) for value, color in limits))


def falling(notice_below: float, bad_below: float) -> tuple[Threshold, ...]:
    """Green from `notice_below` on."""
    return (Threshold(None, BAD), Threshold(bad_below, NOTICE), Threshold(notice_below, GOOD))


def notable_from(value: float) -> tuple[Threshold, ...]:
    """For text in a table: red from a value on, otherwise as other text. Grafana has no orange that can be read as
    small text in its light theme."""
    return (Threshold(None, "text"), Threshold(value, BAD))


def notable_below(value: float) -> tuple[Threshold, ...]:
    """The same below a value."""
    return (Threshold(None, BAD), Threshold(value, "text"))


def figure(
    title: str,
    description: str,
    unit: str,
    query: str | Query,
    *,
    thresholds: tuple[Threshold, ...] = (),
    color: str = MAIN,
    sparkline: bool = False,
    decimals: int | None = None,
    width: int = 3,
) -> Panel:
    """A single value, four rows high."""
    one = Query(query) if isinstance(query, str) else query
    shown = None if thresholds else color
    return Panel(
        title,
        description,
        unit,
        (one,),
        "stat",
        width,
        4,
        color=shown,
        thresholds=thresholds,
        sparkline=sparkline,
        decimals=decimals,
        empty="–",
    )


def marks(counter: str, name: str, color: str, text: str) -> Annotation:
    """Where a counter has grown since the step before."""
    now, before = f"sum by (run) ({sel(counter)})", f"sum by (run) ({sel(counter)} offset $__interval)"
    return Annotation(name, f"({now} - {before}) > 0", color, text)


ANNOTATIONS = (
    marks("convoy_recoveries_total", "Recoveries", BAD, "A recovery ended. `convoy show {{run}}` lists it"),
    marks("convoy_resizes_total", "Resizes", MAIN, "The number of workers changed"),
    marks("convoy_checkpoints_total", "Checkpoints", QUIET, "A checkpoint is complete in storage"),
    Annotation(
        "Alerts",
        'max by (alertname, run) (ALERTS{alertstate="firing",job=~"$job",run=~"$run"})',
        NOTICE,
        "{{alertname}}",
    ),
)
"""What happened, on each time axis of the dashboards of a run."""
