"""The rows of a run's dashboard below its first screen: phases, ranks, memory, state, learning, data, driver."""

from orchestrator.dashboards.boards.panel_parts import (
    BAD,
    GOOD,
    MAIN,
    NOTICE,
    QUIET,
    SECOND,
    THIRD,
    latest,
    quantile,
    rate,
    rising,
    sel,
)
from orchestrator.dashboards.panel_values import Need, Panel, Query, Row, Series

PHASE_COLORS = {
    "data_wait": Series(NOTICE),
    "forward": Series(SECOND),
    "backward": Series(MAIN),
    "optimizer": Series("dark-blue"),
    "of which in collectives": Series(THIRD, drawing="line"),
    "checkpoint": Series("dark-green"),
    "snapshot": Series(GOOD),
}
QUANTILES = {"p50": Series(MAIN), "p99": Series(NOTICE), "max": Series(BAD)}
_RANK = 'rank=~"$rank"'


def of_ranks(metric: str, legend: str = "rank {{rank}}", needs: Need | None = None) -> Query:
    """One series for each chosen rank."""
    return Query(latest(metric, "rank", matchers=(_RANK,)), legend, needs=needs)


def spread(metric: str, matcher: str) -> Query:
    """p50, p99 and maximum over all ranks."""
    return Query(latest(metric, "stat", matchers=(matcher,)), "{{stat}}")


def durations(title: str, description: str, histogram: str, width: int = 8) -> Panel:
    """p50 and p99 of a histogram of seconds."""
    queries = (Query(quantile(0.5, histogram), "p50"), Query(quantile(0.99, histogram), "p99"))
    return Panel(title, description, "s", queries, width=width, series=QUANTILES, minimum=0)


def per_step(matcher: str) -> str:
    """Mean seconds of a step by phase."""
    return (
        f"{rate('convoy_step_phase_duration_seconds_sum', 'phase', matchers=(matcher,))}"
        f" / on () group_left () {rate('convoy_step_duration_seconds_count')}"
    )


PHASES = Row(
    "Where a step's time goes",
    (
        Panel(
            "Seconds of a step by phase",
            "Mean over the ranks. data_wait: waiting for input. checkpoint and snapshot: the parts of saving that"
            " training waits for. The line: the part of forward, backward and optimizer that is spent in collectives.",
            "s",
            (
                Query(per_step('phase!="communication"'), "{{phase}}"),
                Query(per_step('phase="communication"'), "of which in collectives"),
            ),
            width=12,
            drawing="stacked",
            series=PHASE_COLORS,
            minimum=0,
        ),
        durations("Step duration", "Wall time of a step.", "convoy_step_duration_seconds", 12),
        Panel(
            "Share of time in collectives",
            "Share of the step that ranks spent in collectives, mean over the ranks. High: the network, a slow rank, or"
            " too small a micro batch. No series: not measured.",
            "percentunit",
            (Query(latest("convoy_communication_ratio"), "communication"),),
            series={"communication": Series(THIRD)},
            minimum=0,
            drawing="area",
        ),
        Panel(
            "Samples per second",
            "Of all workers together, in the last step.",
            "short",
            (
                Query(latest("convoy_samples_per_second"), "last step"),
                Query(rate("convoy_samples_total"), "mean, with pauses"),
            ),
            series={"last step": Series(MAIN), "mean, with pauses": Series(QUIET)},
            minimum=0,
        ),
        Panel(
            "Model FLOP/s",
            "Of all workers together, without recomputation. MFU, if the device's peak is known, is on the dashboard of"
            " the GPUs.",
            "flops",
            (Query(latest("convoy_model_flops_per_second"), "model FLOP/s"),),
            series={"model FLOP/s": Series(MAIN)},
            minimum=0,
        ),
    ),
)

RANKS = Row(
    "Ranks",
    (
        Panel(
            "Own time of the ranks",
            "Seconds of a step without waiting for other ranks: median, 99th percentile and maximum. A maximum far"
            " above the median is a slow rank that all others wait for.",
            "s",
            (spread("convoy_worker_step_seconds", 'phase="own"'),),
            series=QUANTILES,
            minimum=0,
        ),
        Panel(
            "Slowness by rank",
            "A rank's own time divided by the others' median, over recent steps. 1.5 is slow. With more than 8"
            " ranks, the slowest 4.",
            "none",
            (of_ranks("convoy_straggler_ratio", needs="ranks"),),
            thresholds=rising((1.5, NOTICE)),
            decimals=2,
            minimum=0,
        ),
        Panel(
            "Slowest rank",
            "Number of the rank with the longest own time in the last step. One number that stays is a slow rank;"
            " changing numbers are noise.",
            "none",
            (Query(latest("convoy_slowest_rank"), "slowest rank"),),
            drawing="points",
            series={"slowest rank": Series(NOTICE)},
            minimum=0,
            decimals=0,
        ),
    ),
)

MEMORY = Row(
    "Memory",
    (
        Panel(
            "Host memory of the workers",
            "Resident memory over all ranks: median and maximum.",
            "bytes",
            (spread("convoy_worker_memory_bytes", 'kind="rss",stat=~"p50|max"'),),
            height=10,
            series=QUANTILES,
            minimum=0,
        ),
        Panel(
            "Host memory by rank",
            "Resident memory now, and its peak (dashed). With more than 8 ranks, of the slowest 4.",
            "bytes",
            (of_ranks("convoy_worker_rss_bytes"), of_ranks("convoy_worker_peak_rss_bytes", "rank {{rank}}, peak")),
            height=10,
            series={"/peak/": Series(dashed=True)},
            minimum=0,
        ),
        Panel(
            "Memory of training by part",
            "Of the rank that has most: what the planner predicted and what was measured.",
            "bytes",
            (Query(latest("convoy_memory_part_bytes", "part", "source"), "{{part}}, {{source}}", instant=True),),
            "bargauge",
            height=10,
            series={"/predicted/": Series(QUIET), "/measured/": Series(MAIN)},
            minimum=0,
        ),
    ),
)

STATE = Row(
    "Snapshots, replicas and checkpoints",
    (
        durations(
            "Snapshot",
            "Seconds that a copy of a worker's state into the memory of its node takes.",
            "convoy_snapshot_duration_seconds",
        ),
        durations(
            "Replication",
            "Seconds until a snapshot has arrived in the memory of a peer. Training does not wait for it.",
            "convoy_replication_duration_seconds",
        ),
        durations(
            "Write to storage",
            "Seconds of writing a checkpoint, in the background.",
            "convoy_durable_write_duration_seconds",
        ),
        Panel(
            "State copied and written",
            "Bytes per second copied into the memory of nodes, sent to peers, and written to storage.",
            "Bps",
            (
                Query(rate("convoy_snapshot_bytes_total"), "snapshots"),
                Query(rate("convoy_replication_bytes_total"), "replicas"),
                Query(rate("convoy_checkpoint_bytes_total"), "checkpoints"),
            ),
            series={"snapshots": Series(GOOD), "replicas": Series(MAIN), "checkpoints": Series(THIRD)},
            minimum=0,
        ),
        Panel(
            "Waiting to be sent and written",
            "Bytes of replicas that have not been sent, and checkpoints that are not complete. A queue that grows means"
            " that the network or the storage is too slow for the interval.",
            "bytes",
            (
                Query(latest("convoy_replication_queued_bytes"), "replicas"),
                Query(latest("convoy_durable_writes_queued"), "checkpoints"),
            ),
            series={"replicas": Series(MAIN), "checkpoints": Series(THIRD, unit="none", right_axis=True)},
            minimum=0,
        ),
        Panel(
            "Age of the newest checkpoint",
            "Time since a checkpoint was complete in storage; before the first, since the driver started.",
            "s",
            (Query(latest("convoy_checkpoint_age_seconds"), "age"),),
            series={"age": Series(THIRD)},
            minimum=0,
        ),
    ),
)

LEARNING = Row(
    "Learning",
    (
        Panel(
            "Learning rate",
            "Of the last step.",
            "sci",
            (Query(latest("convoy_learning_rate"), "learning rate"),),
            series={"learning rate": Series(MAIN)},
            minimum=0,
        ),
        Panel(
            "Gradient norm",
            "Global L2 norm of the gradient before clipping.",
            "none",
            (Query(latest("convoy_grad_norm"), "gradient norm"),),
            series={"gradient norm": Series(MAIN)},
            minimum=0,
            decimals=2,
        ),
        Panel(
            "Passes over the data",
            "Epochs so far.",
            "none",
            (Query(latest("convoy_epoch"), "epochs"),),
            series={"epochs": Series(MAIN)},
            minimum=0,
            decimals=2,
        ),
        Panel(
            "Loss scale and skipped updates",
            "fp16 only: the factor that keeps small gradients representable, and updates that were skipped because a"
            " gradient overflowed. Many skipped updates mean that the scale does not settle.",
            "none",
            (
                Query(latest("convoy_loss_scale"), "loss scale", needs="fp16"),
                Query(rate("convoy_skipped_steps_total"), "skipped updates per second", needs="fp16"),
            ),
            width=12,
            height=7,
            series={"loss scale": Series(MAIN), "skipped updates per second": Series(NOTICE, right_axis=True)},
            empty="no fp16",
        ),
        Panel(
            "Numeric faults and samples left out",
            "Losses and gradients that were not finite, and loss spikes; Convoy returns to the state before and leaves"
            " out the samples of the batch.",
            "none",
            (
                Query(f"sum by (kind) (increase({sel('convoy_numeric_faults_total')}[$__rate_interval]))", "{{kind}}"),
                Query(f"sum(increase({sel('convoy_skipped_samples_total')}[$__rate_interval]))", "samples left out"),
            ),
            width=12,
            height=7,
            drawing="bars",
            series={"samples left out": Series(QUIET)},
            minimum=0,
        ),
    ),
)

DATA = Row(
    "Data",
    (
        Panel(
            "Preparation",
            "Share of the text that the present phase of data preparation has processed.",
            "percentunit",
            (
                Query(
                    f"max({sel('convoy_data_processed_bytes')} / ({sel('convoy_data_to_process_bytes')} > 0))",
                    "processed",
                ),
            ),
            width=8,
            height=6,
            series={"processed": Series(MAIN)},
            minimum=0,
            maximum=1,
        ),
        Panel(
            "Prepared corpus",
            "What the corpus consists of. Records that could not be read are left out and listed by `convoy show`.",
            "short",
            (
                Query(latest("convoy_data_tokens"), "tokens"),
                Query(latest("convoy_data_documents"), "documents"),
                Query(latest("convoy_data_samples", "split"), "samples, {{split}}"),
                Query(latest("convoy_data_bad_records"), "bad records"),
            ),
            "stat",
            16,
            6,
            color=MAIN,
            empty="–",
        ),
    ),
    collapsed=True,
)

DRIVER = Row(
    "Driver",
    (
        Panel(
            "Longest round of the driver's loop",
            "In the last 10 s. The driver judges heartbeats: seconds here delay the detection of failures, and 20 s let"
            " another driver take over.",
            "s",
            (Query(latest("convoy_driver_loop_lag_seconds"), "longest round"),),
            series={"longest round": Series(MAIN)},
            thresholds=rising((5, NOTICE), (20, BAD)),
            minimum=0,
        ),
        Panel(
            "CPU of the driver",
            "Processors in use.",
            "none",
            (Query(rate("convoy_driver_cpu_seconds_total"), "processors"),),
            series={"processors": Series(MAIN)},
            minimum=0,
            decimals=2,
        ),
        Panel(
            "Memory and open files of the driver",
            "Resident memory, and file descriptors that are open.",
            "bytes",
            (
                Query(latest("convoy_driver_rss_bytes"), "memory"),
                Query(latest("convoy_driver_open_files"), "open files"),
            ),
            series={"memory": Series(MAIN), "open files": Series(QUIET, unit="none", right_axis=True)},
            minimum=0,
        ),
    ),
    collapsed=True,
)

DETAIL_ROWS = (PHASES, RANKS, MEMORY, STATE, LEARNING, DATA, DRIVER)
