"""The dashboard of failures: what failed, how fast training continued, and what would be lost now."""

from orchestrator.dashboards.boards.panel_parts import (
    ANNOTATIONS,
    BAD,
    GOOD,
    JOB,
    MAIN,
    NOTICE,
    QUIET,
    RELIABILITY_UID,
    RUNS,
    SECOND,
    THIRD,
    figure,
    latest,
    quantile,
    rising,
    sel,
    total,
)
from orchestrator.dashboards.panel_values import Board, Panel, Query, Row, Series, Threshold

_RECOVERY = "convoy_recovery_duration_seconds"
_VAULTS = f'label_replace({latest("convoy_vault_bytes", "node")}, "node", "$1", "node", "(.{{8}}).*")'


def _rise(counter: str, *by: str) -> str:
    """Events between two points of a time axis."""
    grouped = f" by ({', '.join(by)}) " if by else ""
    return f"round(sum{grouped}(increase({sel(counter)}[$__rate_interval])))"


FIGURES = (
    figure(
        "Recoveries",
        "From lost workers, lost nodes and numeric faults, in the range that is shown.",
        "none",
        Query(total("convoy_recoveries_total"), instant=True),
        decimals=0,
    ),
    figure(
        "Recovery time",
        "Mean of the recoveries in the range: from the detection of the failure to the end of the first step after it.",
        "s",
        Query(
            f"sum(increase({sel(_RECOVERY + '_sum')}[$__range]))"
            f" / (sum(increase({sel(_RECOVERY + '_count')}[$__range])) > 0)",
            instant=True,
        ),
        thresholds=rising((30, NOTICE), (300, BAD)),
        decimals=1,
    ),
    figure(
        "Recomputed",
        "Finished steps that recoveries repeated, in the range.",
        "none",
        Query(total("convoy_recomputed_steps_total"), instant=True),
        decimals=0,
    ),
    figure(
        "Steps at risk",
        "Finished steps that the loss of one node would cost now; the run with most.",
        "none",
        latest("convoy_steps_at_risk"),
        thresholds=rising((100, NOTICE), (1000, BAD)),
        decimals=0,
    ),
    figure(
        "Copies",
        "Smallest number of copies in memory of any shard. With one node there is one; with several, fewer than two"
        " means that the loss of a node costs the steps since the last checkpoint.",
        "none",
        f"min({sel('convoy_copies_min')})",
        decimals=0,
    ),
    figure(
        "Critical nodes",
        "Nodes whose loss would leave no complete step in memory.",
        "none",
        latest("convoy_unrecoverable_nodes"),
        thresholds=(Threshold(None, GOOD), Threshold(1, NOTICE)),
        decimals=0,
    ),
    figure(
        "Silent vaults",
        "Nodes whose memory of the training state did not answer the last survey.",
        "none",
        f"count({sel('convoy_vault_up')} == 0) or 0 * count({sel('convoy_vault_up')})",
        thresholds=(Threshold(None, GOOD), Threshold(1, NOTICE)),
        decimals=0,
    ),
    figure(
        "Failed writes",
        "Checkpoints that could not be written, in the range. Training continues without them.",
        "none",
        Query(total("convoy_checkpoint_failures_total"), instant=True),
        thresholds=(Threshold(None, GOOD), Threshold(1, BAD)),
        decimals=0,
    ),
)

RECOVERIES = (
    Panel(
        "Recoveries by reason",
        "When and why.",
        "none",
        (Query(_rise("convoy_recoveries_total", "reason"), "{{reason}}"),),
        width=12,
        drawing="bars",
        minimum=0,
        decimals=0,
    ),
    Panel(
        "Seconds of recovering by phase",
        "Detection: until the failure is confirmed. Decision: which workers continue. Rebuild: process group and"
        " engine. Restore: the state. First step: the first step after it.",
        "s",
        (
            Query(
                f"sum by (phase) (increase({sel('convoy_recovery_phase_seconds_total')}[$__rate_interval]))",
                "{{phase}}",
            ),
        ),
        width=12,
        drawing="bars",
        series={
            "detection": Series(NOTICE),
            "decision": Series(QUIET),
            "rebuild": Series(THIRD),
            "restore": Series(MAIN),
            "first_step": Series(SECOND),
        },
        minimum=0,
    ),
    Panel(
        "Duration of recoveries",
        "Median and 99th percentile over the range, estimated from buckets.",
        "s",
        tuple(
            Query(
                f"histogram_quantile({share}, sum by (le) (increase({sel(_RECOVERY + '_bucket')}[$__range])))",
                name,
                instant=True,
            )
            for share, name in ((0.5, "p50"), (0.99, "p99"))
        ),
        "bargauge",
        8,
        6,
        series={"p50": Series(MAIN), "p99": Series(NOTICE)},
        minimum=0,
        decimals=1,
    ),
    Panel(
        "Failures",
        "In the range. Hangs: workers that were ended because they made no progress. Nodes drained: announced to go.",
        "none",
        tuple(
            Query(total(counter), name, instant=True)
            for name, counter in (
                ("Workers failed", "convoy_worker_failures_total"),
                ("Hangs", "convoy_worker_hangs_total"),
                ("Nodes drained", "convoy_draining_nodes_total"),
                ("Resizes", "convoy_resizes_total"),
            )
        ),
        "bargauge",
        8,
        6,
        color=MAIN,
        series={"Workers failed": Series(BAD), "Hangs": Series(BAD), "Nodes drained": Series(NOTICE)},
        minimum=0,
    ),
    Panel(
        "Restores",
        "In the range: states read back, and checkpoints that were found damaged and skipped.",
        "none",
        (
            Query(total("convoy_checkpoint_restores_total"), "Restores", instant=True),
            Query(total("convoy_checkpoint_rejections_total"), "Damaged checkpoints", instant=True),
        ),
        "bargauge",
        8,
        6,
        color=MAIN,
        series={"Damaged checkpoints": Series(BAD)},
        minimum=0,
    ),
)

STATE = Row(
    "Where the state is",
    (
        Panel(
            "Newest step in each tier",
            "Own: memory of the ranks' nodes. Peers: memory of other nodes. Storage: checkpoints. Step: where training"
            " is.",
            "none",
            (
                Query(latest("convoy_step", "run"), "step"),
                Query(latest("convoy_protected_step", "run"), "protected, as the workers know"),
                Query(latest("convoy_tier_step", "run", "tier"), "{{tier}}"),
            ),
            width=12,
            series={
                "step": Series(QUIET),
                "protected, as the workers know": Series(SECOND, dashed=True),
                "own": Series(GOOD),
                "peers": Series(MAIN),
                "storage": Series(THIRD),
            },
            decimals=0,
        ),
        Panel(
            "Memory of the vaults",
            "Memory that holds training state, by node (the beginning of its id), and what one node is planned to need"
            " at most.",
            "bytes",
            (
                Query(_VAULTS, "node {{node}}"),
                Query(latest("convoy_vault_planned_bytes"), "planned, one node"),
            ),
            width=12,
            series={"planned, one node": Series(QUIET, dashed=True)},
            minimum=0,
        ),
        Panel(
            "Checkpoints",
            "Time spent writing checkpoints, per second, and the step of the newest.",
            "percentunit",
            (
                Query(f"sum(rate({sel('convoy_checkpoint_seconds_total')}[$__rate_interval]))", "time writing"),
                Query(latest("convoy_checkpoint_step"), "newest"),
            ),
            width=12,
            series={"time writing": Series(THIRD), "newest": Series(MAIN, unit="none", right_axis=True)},
            minimum=0,
        ),
        Panel(
            "Replication",
            "Seconds until a snapshot has arrived in the memory of a peer.",
            "s",
            (
                Query(quantile(0.5, "convoy_replication_duration_seconds"), "p50"),
                Query(quantile(0.99, "convoy_replication_duration_seconds"), "p99"),
            ),
            width=12,
            series={"p50": Series(MAIN), "p99": Series(NOTICE)},
            minimum=0,
        ),
    ),
)

RELIABILITY = Board(
    RELIABILITY_UID,
    "Convoy / Reliability",
    "What failed, how fast training continued, and what would be lost now.",
    (JOB, RUNS),
    (Row("", (*FIGURES, *RECOVERIES)), STATE),
    ANNOTATIONS,
    range_from="now-6h",
    refresh="30s",
)
