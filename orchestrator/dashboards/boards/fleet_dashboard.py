"""The dashboard of all runs: what runs, how well, and which run needs a look."""

from dataclasses import replace

from orchestrator.dashboards.boards.panel_parts import (
    BAD,
    FLEET_UID,
    GOOD,
    JOB,
    NOTICE,
    RUN_UID,
    RUNS,
    STATE_COLORS,
    falling,
    figure,
    latest,
    notable_below,
    notable_from,
    rising,
    sel,
    total,
    weighted_goodput,
)
from orchestrator.dashboards.panel_values import Board, Column, Panel, Query, Row


def runs_in(*states: str) -> Query:
    """How many runs are in one of these states."""
    matcher = f'state=~"{"|".join(states)}"'
    return Query(f"sum({sel('convoy_run_state', matcher)} == 1) or vector(0)", instant=True)


FIGURES = (
    figure("Training", "Runs that train now.", "none", runs_in("running"), color=GOOD, decimals=0),
    figure(
        "Recovering",
        "Runs that replace lost workers. Convoy does this by itself.",
        "none",
        runs_in("recovering"),
        thresholds=rising((1, NOTICE)),
        decimals=0,
    ),
    figure(
        "Waiting",
        "Runs with fewer workers than their minimum. Their state is safe; they need nodes.",
        "none",
        runs_in("waiting"),
        thresholds=rising((1, NOTICE)),
        decimals=0,
    ),
    figure(
        "Failed",
        "Runs that ended with an error while they were watched. They can be resumed.",
        "none",
        runs_in("failed"),
        thresholds=rising((1, BAD)),
        decimals=0,
    ),
    figure("Workers", "Workers that train, of all runs.", "none", f"sum({sel('convoy_workers')})", decimals=0),
    figure(
        "Tokens/s",
        "Of all runs together.",
        "short",
        f"sum({sel('convoy_tokens_per_second')})",
        sparkline=True,
    ),
    figure(
        "Goodput",
        "Share of the workers' time that was spent on steps that count; runs weigh by their workers' time.",
        "percentunit",
        weighted_goodput(),
        thresholds=falling(0.9, 0.7),
        decimals=1,
    ),
    replace(
        figure(
            "Spent",
            "Cost of the workers' time so far, at `cluster.usd_per_hour`.",
            "currencyUSD",
            Query(f"sum({sel('convoy_cost_usd')})", needs="price"),
        ),
        empty="no price",
    ),
)

_BY_RUN = ("job", "run")
RUNS_TABLE = Panel(
    "Runs",
    "Runs whose driver is alive. A run's name leads to its dashboard.",
    "none",
    (
        Query(f"max by (job, run, state) ({sel('convoy_run_state')} == 1)", instant=True),
        Query(f"max by (job, run) ({sel('convoy_step')} / {sel('convoy_total_steps')})", instant=True),
        Query(latest("convoy_loss", *_BY_RUN), instant=True),
        Query(latest("convoy_tokens_per_second", *_BY_RUN), instant=True),
        Query(latest("convoy_workers", *_BY_RUN), instant=True),
        Query(latest("convoy_goodput_ratio", *_BY_RUN), instant=True),
        Query(latest("convoy_steps_at_risk", *_BY_RUN), instant=True),
        Query(latest("convoy_checkpoint_age_seconds", *_BY_RUN), instant=True),
        Query(f"max by (job, run, version) ({sel('convoy_run_info')})", instant=True),
    ),
    "table",
    24,
    9,
    columns=(
        Column("run", "Run", link=f"/d/{RUN_UID}?var-run=${{__value.raw}}&${{__url_time_range}}", width=245),
        Column("job", "Job", width=110),
        Column("state", "State", width=95, names=STATE_COLORS),
        Column("B", "Progress", "percentunit", gauge=True, decimals=0, width=150),
        Column("C", "Loss", "none", 3),
        Column("D", "Tokens/s", "short", 1),
        Column("E", "Workers", "none", 0),
        Column("F", "Goodput", "percentunit", 1, thresholds=notable_below(0.7)),
        Column("G", "Steps at risk", "none", 0, thresholds=notable_from(1000)),
        Column("H", "Last saved", "s", 0, thresholds=notable_from(14400)),
        Column("version", "Convoy"),
    ),
)

CHARTS = (
    Panel(
        "Throughput by run",
        "Real tokens per second.",
        "short",
        (Query(latest("convoy_tokens_per_second", "run"), "{{run}}"),),
        width=12,
        drawing="stacked",
        minimum=0,
    ),
    Panel(
        "Training loss by run",
        "Of each step, in nats. Losses of different data or tokenizers cannot be compared.",
        "none",
        (Query(latest("convoy_loss", "run"), "{{run}}"),),
        width=12,
        decimals=2,
    ),
    Panel(
        "Workers by run",
        "Workers that train.",
        "none",
        (Query(latest("convoy_workers", "run"), "{{run}}"),),
        width=8,
        drawing="stacked",
        minimum=0,
        decimals=0,
    ),
    Panel(
        "Goodput by run",
        "Since the start of each run.",
        "percentunit",
        (Query(latest("convoy_goodput_ratio", "run"), "{{run}}"),),
        width=8,
        minimum=0,
        maximum=1,
    ),
    Panel(
        "Recoveries by run",
        "In the range that is shown.",
        "none",
        (Query(total("convoy_recoveries_total", "run"), "{{run}}", instant=True),),
        "bargauge",
        8,
        color=BAD,
        minimum=0,
    ),
)

FLEET = Board(
    FLEET_UID,
    "Convoy / Fleet",
    "All runs: what runs, how well, and which run needs a look.",
    (JOB, RUNS),
    (Row("", (*FIGURES, RUNS_TABLE, *CHARTS)),),
    range_from="now-6h",
    refresh="30s",
)
