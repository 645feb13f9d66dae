"""The dashboard of time and money: what share of the workers' time made progress, and where the rest went."""

from dataclasses import replace

from orchestrator.dashboards.boards.panel_parts import (
    ANNOTATIONS,
    BAD,
    GOOD,
    GOODPUT_UID,
    JOB,
    NOTICE,
    QUIET,
    RUNS,
    SECOND,
    THIRD,
    falling,
    figure,
    latest,
    sel,
    weighted_goodput,
)
from orchestrator.dashboards.panel_values import Board, Panel, Query, Row, Series

GROUPS = (
    ("productive", "productive", GOOD),
    ("lost to failures", "recovery_.*|recomputed", BAD),
    ("waiting, resizing", "waiting|resizing", NOTICE),
    ("overhead", "checkpoint_stall|snapshot_stall|data_wait|straggling|communication_wait", THIRD),
    ("evaluation, export", "evaluation|export", SECOND),
    ("start, end", "startup|idle_tail", QUIET),
)
"""Name, classes of the ledger, colour."""
_TIME = "convoy_worker_time_seconds"


def _classes(pattern: str) -> str:
    return f'class=~"{pattern}"'


FIGURES = (
    figure(
        "Goodput",
        "Share of the workers' time, from reservation to release, that was spent on steps that count.",
        "percentunit",
        weighted_goodput(),
        thresholds=falling(0.9, 0.7),
        sparkline=True,
        decimals=1,
        width=4,
    ),
    figure(
        "ETTR",
        "Effective training time ratio: productive time as a share of the wall time that the run had, waits included.",
        "percentunit",
        f"avg({latest('convoy_ettr_ratio', 'run')})",
        thresholds=falling(0.9, 0.7),
        decimals=1,
        width=4,
    ),
    figure(
        "Worker time",
        "Time of all workers from reservation to release; of GPUs if the workers have GPUs.",
        "h",
        f"sum(max by (run, device) ({sel('convoy_reserved_seconds')})) / 3600",
        decimals=1,
        width=4,
    ),
    replace(
        figure(
            "Spent",
            "Cost of the workers' time, at `cluster.usd_per_hour`.",
            "currencyUSD",
            Query(f"sum({latest('convoy_cost_usd', 'run')})", needs="price"),
            decimals=2,
            width=4,
        ),
        empty="no price",
    ),
    replace(
        figure(
            "Per million tokens",
            "Cost in the range that is shown, divided by the tokens trained on in it.",
            "currencyUSD",
            Query(
                f"sum(max by (run) (delta({sel('convoy_cost_usd')}[$__range])))"
                f" / (sum(increase({sel('convoy_tokens_total')}[$__range])) / 1e6)",
                instant=True,
                needs="price",
            ),
            decimals=3,
            width=4,
        ),
        empty="no price",
    ),
    replace(
        figure(
            "Lost",
            "Cost of time that made no progress because of failures, waiting and stalls.",
            "currencyUSD",
            Query(f"sum(max by (run, cause) ({sel('convoy_cost_lost_usd')}))", needs="price"),
            color=BAD,
            decimals=2,
            width=4,
        ),
        empty="no price",
    ),
)

WHERE = (
    Panel(
        "Where the workers' time goes",
        "Share of the workers' time by group of classes, while it passes. Steps that a recovery throws away move from"
        " productive to lost.",
        "s",
        tuple(
            Query(f"clamp_min(sum(delta({sel(_TIME, _classes(pattern))}[$__rate_interval])), 0)", name)
            for name, pattern, _ in GROUPS
        ),
        width=14,
        height=12,
        drawing="share",
        series={name: Series(color) for name, _, color in GROUPS},
    ),
    Panel(
        "Worker time by class",
        "The ten largest classes since the start of the runs. All classes together are all of the workers' time.",
        "s",
        (
            Query(
                f"sort_desc(topk(10, sum by (class) (max by (run, class) ({sel(_TIME)})) > 0))",
                "{{class}}",
                instant=True,
            ),
        ),
        "bargauge",
        10,
        12,
        color=QUIET,
        series={
            "productive": Series(GOOD),
            "/^(recovery_.*|recomputed)$/": Series(BAD),
            "/^(waiting|resizing)$/": Series(NOTICE),
            "/_stall$|^data_wait$|^straggling$|^communication_wait$/": Series(THIRD),
            "/^(evaluation|export)$/": Series(SECOND),
        },
        minimum=0,
        decimals=1,
    ),
)

BY_RUN = (
    Panel(
        "Goodput by run",
        "Since the start of each run.",
        "percentunit",
        (Query(latest("convoy_goodput_ratio", "run"), "{{run}}"),),
        width=8,
        height=9,
        minimum=0,
        maximum=1,
    ),
    Panel(
        "Spent by run",
        "At `cluster.usd_per_hour`.",
        "currencyUSD",
        (Query(latest("convoy_cost_usd", "run"), "{{run}}", needs="price"),),
        width=8,
        height=9,
        drawing="stacked",
        minimum=0,
        empty="no price: set cluster.usd_per_hour",
    ),
    Panel(
        "Cost lost by cause",
        "What time without progress cost, the seven largest causes. `convoy goodput RUN --by cause` lists it.",
        "currencyUSD",
        (
            Query(
                f"sort_desc(topk(7, sum by (cause) (max by (run, cause) ({sel('convoy_cost_lost_usd')}))))",
                "{{cause}}",
                instant=True,
                needs="price",
            ),
        ),
        "bargauge",
        8,
        9,
        color=BAD,
        minimum=0,
        decimals=2,
        empty="no price: set cluster.usd_per_hour",
    ),
)

GOODPUT = Board(
    GOODPUT_UID,
    "Convoy / Goodput and cost",
    "What share of the workers' time made progress, where the rest went, and what it cost.",
    (JOB, RUNS),
    (Row("", (*FIGURES, *WHERE, *BY_RUN)),),
    ANNOTATIONS,
    range_from="now-6h",
    refresh="30s",
)
