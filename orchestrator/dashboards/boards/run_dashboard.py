"""The dashboard of one run. Its first screen: does it learn, how fast, what would a loss cost, what happened."""

from orchestrator.dashboards.boards.panel_parts import (
    ANNOTATIONS,
    BAD,
    GOOD,
    JOB,
    MAIN,
    NOTICE,
    ONE_RUN,
    QUIET,
    RANK,
    RUN_UID,
    STATE_COLORS,
    THIRD,
    falling,
    figure,
    latest,
    rising,
    sel,
    total,
)
from orchestrator.dashboards.boards.run_details import DETAIL_ROWS
from orchestrator.dashboards.panel_values import Board, Panel, Query, Row, Series

_LEFT = (
    f"max(({sel('convoy_total_steps')} - {sel('convoy_step')})"
    f" / (rate({sel('convoy_steps_total')}[$__rate_interval]) > 0))"
)

FIGURES = (
    Panel(
        "State",
        "What the run does now. Recovering and waiting are handled by Convoy; failed needs a person.",
        "none",
        (Query(f"max by (state) ({sel('convoy_run_state')} == 1)", "{{state}}", instant=True),),
        "stat",
        3,
        4,
        series={state: Series(color) for state, color in STATE_COLORS.items()},
        color=MAIN,
        names_only=True,
        empty="no driver",
    ),
    figure(
        "Progress",
        "Optimizer steps completed, as a share of all steps of the run.",
        "percentunit",
        f"max({sel('convoy_step')} / {sel('convoy_total_steps')})",
        decimals=1,
    ),
    figure("Time left", "Remaining steps at the present speed.", "s", _LEFT, decimals=1),
    figure(
        "Loss",
        "Training loss of the last step: mean over the target tokens of the global batch, in nats.",
        "none",
        latest("convoy_loss"),
        sparkline=True,
        decimals=3,
    ),
    figure(
        "Tokens/s",
        "Real tokens, without padding, of all workers together in the last step.",
        "short",
        latest("convoy_tokens_per_second"),
        sparkline=True,
    ),
    figure(
        "Steps at risk",
        "Finished steps that the loss of one node would cost. Steps since the last copy are normal; a number that keeps"
        " growing is not.",
        "none",
        latest("convoy_steps_at_risk"),
        thresholds=rising((100, NOTICE), (1000, BAD)),
        decimals=0,
    ),
    figure(
        "Last checkpoint",
        "Time since the last checkpoint was complete in storage. It is what survives the loss of everything.",
        "s",
        Query(latest("convoy_checkpoint_age_seconds"), instant=True),
        thresholds=rising((3600, NOTICE), (14400, BAD)),
        decimals=0,
    ),
    figure(
        "Goodput",
        "Share of the workers' time that was spent on steps that count.",
        "percentunit",
        latest("convoy_goodput_ratio"),
        thresholds=falling(0.9, 0.7),
        decimals=1,
    ),
)

LEARNING = Panel(
    "Loss",
    "Training loss of each step and validation loss of each evaluation, in nats. A recovery does not show in the curve:"
    " the steps that it repeats have the same losses.",
    "none",
    (Query(latest("convoy_loss"), "training"), Query(latest("convoy_validation_loss"), "validation")),
    width=12,
    height=9,
    series={"training": Series(MAIN), "validation": Series(NOTICE, drawing="steps")},
    decimals=2,
)

SPEED = Panel(
    "Throughput",
    "Real tokens per second of all workers together, and the workers that took part.",
    "short",
    (Query(latest("convoy_tokens_per_second"), "tokens/s"), Query(latest("convoy_workers"), "workers")),
    width=12,
    height=9,
    drawing="area",
    series={"tokens/s": Series(MAIN), "workers": Series(QUIET, right_axis=True, drawing="steps", unit="none")},
    minimum=0,
)

SAFETY = Panel(
    "Steps that a loss would cost",
    "Steps since the newest state that survives the loss of a worker (memory of its node), of a node (memory of peers)"
    " and of the whole cluster (storage).",
    "none",
    (
        Query(
            f"{latest('convoy_step', 'run')} - on (run) group_right () {latest('convoy_tier_step', 'run', 'tier')}",
            "{{tier}}",
        ),
    ),
    width=10,
    series={
        "own": Series(GOOD),
        "peers": Series(MAIN),
        "storage": Series(THIRD),
    },
    minimum=0,
    decimals=0,
)

WORKERS = Panel(
    "Workers",
    "Workers that train, the number that was requested, and those that a waiting run still needs. Marks: recoveries in"
    " red, resizes in blue, checkpoints in grey.",
    "none",
    (
        Query(latest("convoy_workers"), "training"),
        Query(latest("convoy_target_workers"), "requested"),
        Query(f"{latest('convoy_missing_workers')} > 0", "missing", needs="waiting"),
    ),
    width=9,
    drawing="steps",
    series={"training": Series(MAIN), "requested": Series(QUIET, dashed=True), "missing": Series(BAD)},
    minimum=0,
    decimals=0,
)

HAPPENED = Panel(
    "What happened",
    "Events in the range that is shown. Recomputed: steps that recoveries repeated. Bad losses: not finite, or"
    " spikes. `convoy show RUN` lists them, `incidents/` in the run's directory has a page for each recovery.",
    "none",
    tuple(
        Query(total(counter), name, instant=True)
        for name, counter in (
            ("Recoveries", "convoy_recoveries_total"),
            ("Recomputed", "convoy_recomputed_steps_total"),
            ("Resizes", "convoy_resizes_total"),
            ("Checkpoints", "convoy_checkpoints_total"),
            ("Bad losses", "convoy_numeric_faults_total"),
            ("Warnings", "convoy_warnings_total"),
        )
    ),
    "bargauge",
    5,
    8,
    color=MAIN,
    series={
        "Recoveries": Series(BAD),
        "Recomputed": Series(BAD),
        "Bad losses": Series(BAD),
        "Warnings": Series(NOTICE),
        "Checkpoints": Series(GOOD),
    },
    minimum=0,
)

RUN = Board(
    RUN_UID,
    "Convoy / Run",
    "One run: does it learn, how fast, what would a loss cost, and what happened.",
    (JOB, ONE_RUN, RANK),
    (
        Row("", (*FIGURES, LEARNING, SPEED, SAFETY, WORKERS, HAPPENED)),
        *DETAIL_ROWS,
    ),
    ANNOTATIONS,
)
