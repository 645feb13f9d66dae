"""What a person wants to know of, and nothing else: what Convoy handles by itself raises no alert.

Every alert names what to do. A new one needs a case in `tests/monitoring/test_alerts.py` in which it fires.
"""

from orchestrator.dashboards.boards.panel_parts import GOODPUT_UID, GPUS_UID, RELIABILITY_UID, RUN_UID
from orchestrator.dashboards.rules.recording_rules import AT_RISK_S, GOODPUT_2H, LOSS_MEAN, TOKENS_RATE, WORKERS
from orchestrator.dashboards.rules.rule_values import PER_RUN, Alert

_LIVE = f'max {PER_RUN} (convoy_run_state{{state=~"preparing|starting|running|recovering|waiting"}}) == 1'
_TRAINS = f'max {PER_RUN} (min_over_time(convoy_run_state{{state="running"}}[10m])) == 1'

STOPPED: tuple[Alert, ...] = (
    Alert(
        "ConvoyRunFailed",
        "critical",
        f'max {PER_RUN} (max_over_time(convoy_run_state{{state="failed"}}[15m])) == 1 unless on (job, run) {_LIVE}',
        "{{ $labels.job }}: the run {{ $labels.run }} has failed",
        "The run has ended with an error that Convoy does not recover from: its code raises, the budget of failures"
        " (`recovery.max_failures`) is used up, or failures in a row gained no step. Its state is kept.",
        "`convoy show {{ $labels.run }}` has the reason and the last lines of output. Remove the cause, then"
        " `convoy run --resume {{ $labels.run }}`: it continues with the next step.",
        RUN_UID,
    ),
    Alert(
        "ConvoyDriverLost",
        "critical",
        f"max {PER_RUN} (last_over_time(convoy_run_info[1h]) and on (instance) up == 0) unless on (job, run)"
        f' max {PER_RUN} (last_over_time(convoy_run_state{{state=~"succeeded|failed|stopped"}}[1h])) == 1',
        "{{ $labels.job }}: the driver of {{ $labels.run }} does not answer",
        "The endpoint of a run that has not ended cannot be scraped: its driver was killed, its machine is down, or the"
        " network between it and Prometheus is. Without a driver nothing is recovered, and on a local cluster nothing"
        " trains.",
        "`convoy show {{ $labels.run }}` on the driver's machine says whether the driver lives. If it does not:"
        " `convoy run --resume {{ $labels.run }}`, on any machine that reaches the run's directory.",
        RUN_UID,
        "2m",
    ),
    Alert(
        "ConvoyNoStep",
        "critical",
        f"(time() - max {PER_RUN} (convoy_last_step_timestamp_seconds) > 900)"
        f' and on (job, run) max {PER_RUN} (convoy_run_state{{state="running"}}) == 1'
        f" and on (job, run) max {PER_RUN} (convoy_step) < max {PER_RUN} (convoy_total_steps)",
        "{{ $labels.job }}: no step for {{ $value | humanizeDuration }}",
        "The run counts as running, and no step has ended for a quarter of an hour. Convoy ends and replaces workers"
        " that hang; this is something that it does not take for a hang: an evaluation that takes very long, or"
        " storage that does not answer.",
        "`convoy show {{ $labels.run }}` names what the workers do and for how long. Check the file system or bucket of"
        " data and checkpoints. End the driver with Ctrl-C and `convoy run --resume {{ $labels.run }}` if it does"
        " not end.",
        RUN_UID,
        "5m",
    ),
    Alert(
        "ConvoyRecoveryTakesLong",
        "critical",
        f'max {PER_RUN} (convoy_run_state{{state="recovering"}}) == 1',
        "{{ $labels.job }} has been recovering for 15 minutes",
        "A recovery takes seconds from memory, and the time to read a checkpoint from storage otherwise. This one does"
        " not end.",
        "`convoy show {{ $labels.run }}`: the newest incident names the phase. Restore: check the storage. Rebuild:"
        " check the network between the nodes.",
        RELIABILITY_UID,
        "15m",
    ),
    Alert(
        "ConvoyWaitsForWorkers",
        "critical",
        f"max {PER_RUN} (convoy_missing_workers) > 0",
        "{{ $labels.job }} is waiting for {{ $value }} workers",
        "Fewer workers than `resources.workers.min` are left. The state is safe in memory and in storage, and training"
        " continues by itself when there are nodes.",
        "Add nodes to the cluster; or continue with fewer workers:"
        " `convoy scale {{ $labels.run }} --workers N --force`.",
        RUN_UID,
        "10m",
    ),
)

AT_RISK: tuple[Alert, ...] = (
    Alert(
        "ConvoyRecoversOften",
        "warning",
        f"sum {PER_RUN} (increase(convoy_recoveries_total[1h])) > 3.5",
        "{{ $labels.job }} recovered {{ $value | humanize }} times in an hour",
        "Each recovery worked. After `recovery.max_failures` failures in an hour (8 if the job does not set it) the run"
        " ends as failed.",
        "The pages in the run's `incidents/` name the ranks and nodes that failed. The same node each time: drain"
        " it. The same exception each time: correct the job.",
        RELIABILITY_UID,
    ),
    Alert(
        "ConvoyCheckpointsFail",
        "warning",
        f"sum {PER_RUN} (increase(convoy_checkpoint_failures_total[1h])) > 0"
        f" and on (job, run) max {PER_RUN} (convoy_checkpoint_age_seconds) > 1800",
        "{{ $labels.job }} cannot write checkpoints",
        "Writing failed within the last hour, and no checkpoint has been completed for half an hour. Training"
        " continues; its state is in the memory of the nodes.",
        "`convoy show {{ $labels.run }}` has the error: disk full, bucket unreachable, access denied. The next"
        " checkpoint is written as soon as the storage accepts it; nothing has to be restarted.",
        RELIABILITY_UID,
    ),
    Alert(
        "ConvoyCheckpointIsOld",
        "warning",
        f"max {PER_RUN} (convoy_checkpoint_age_seconds) > 14400"
        f" and on (job, run) sum {PER_RUN} (convoy_checkpoints_total) > 0",
        "{{ $labels.job }}: the newest checkpoint is {{ $value | humanizeDuration }} old",
        "No checkpoint in storage for four hours, in a run that writes some. If the whole cluster is lost, training"
        " returns to that checkpoint.",
        "Set `checkpoint.interval_steps` lower if the interval is meant to be shorter; raise the limit of this alert if"
        " it is meant to be as long.",
        RELIABILITY_UID,
        "15m",
    ),
    Alert(
        "ConvoyWorkAtRisk",
        "warning",
        f"{AT_RISK_S} > 1800",
        "{{ $labels.job }}: the loss of one node would cost {{ $value | humanizeDuration }} of training",
        "The newest state that survives the loss of any one node is more than half an hour old: copies in the memory of"
        " peers are missing or late, and the newest checkpoint is older.",
        "`convoy durability {{ $labels.run }}` names the nodes and shards without a copy. Usual causes: only one"
        " node has workers, `checkpoint.replicas` is 0, or the network is too slow for the interval of the snapshots.",
        RELIABILITY_UID,
        "10m",
    ),
    Alert(
        "ConvoyDriverIsLate",
        "warning",
        f"max {PER_RUN} (convoy_driver_loop_lag_seconds) > 10",
        "{{ $labels.job }}: a round of the driver's loop takes {{ $value | humanizeDuration }}",
        "The driver is too slow to judge heartbeats in time: failures are detected late. After 20 s without a"
        " renewal of its lease another driver may take the run over.",
        "Look for what else uses the driver's machine (processors, memory, a slow disk under the run's directory), and"
        " move one of them.",
        RUN_UID,
        "5m",
    ),
)

WASTE: tuple[Alert, ...] = (
    Alert(
        "ConvoyWorkerIsSlow",
        "warning",
        "max by (job, run, rank) (convoy_straggler_ratio) > 1.5",
        "{{ $labels.job }}: rank {{ $labels.rank }} takes {{ $value | humanize }} times the others' time",
        "All ranks wait for the slowest one in each step, so the whole run is as slow as this rank. Convoy reports slow"
        " workers and does not remove them.",
        "Compare the rank's phases on the dashboard: data wait points to its disk, forward and backward to its"
        " processor or GPU (throttled, shared). Drain its node if it stays slow.",
        RUN_UID,
        "15m",
    ),
    Alert(
        "ConvoyThroughputDropped",
        "warning",
        f"{TOKENS_RATE} < 0.6 * quantile_over_time(0.5, {TOKENS_RATE}[6h])"
        f" and on (job, run) {WORKERS} >= max_over_time({WORKERS}[6h]) and on (job, run) {_TRAINS}",
        "{{ $labels.job }} trains at less than 60% of its usual speed: {{ $value | humanize }} tokens/s",
        "With as many workers as before, tokens per second are below 60% of the median of six hours, and the run"
        " neither recovers nor waits.",
        "`convoy why {{ $labels.run }}` names what bounds the speed. On the dashboard, the phase of the step that grew"
        " shows where to look (data wait, communication, checkpoints), and the slowness by rank whether one rank is"
        " behind.",
        RUN_UID,
        "20m",
    ),
    Alert(
        "ConvoyGoodputLow",
        "warning",
        f"{GOODPUT_2H} < 0.5 and on (job, run) (convoy_run_info offset 2h)",
        "{{ $labels.job }}: {{ $value | humanizePercentage }} of the workers' time makes progress",
        "In the last two hours less than half of the time that is paid for was spent on steps that count.",
        "`convoy goodput {{ $labels.run }}` shows where it goes. Recoveries: find what fails. Waiting: lower"
        " `resources.workers.min`, or stop the run until there are nodes. Stalls: write checkpoints less often.",
        GOODPUT_UID,
        "30m",
    ),
    Alert(
        "ConvoyLossDiverges",
        "warning",
        f"{LOSS_MEAN} > 1.3 * min_over_time({LOSS_MEAN}[6h]) and {LOSS_MEAN} > min_over_time({LOSS_MEAN}[6h]) + 0.5",
        "{{ $labels.job }}: the loss has risen to {{ $value | humanize }}",
        "The mean loss of ten minutes is far above the lowest of the last six hours, and stays there. Recoveries do not"
        " change the loss; the model itself gets worse.",
        "Compare learning rate and gradient norm on the dashboard. A resumed run keeps its learning rate: to train with"
        " another one, stop this run and start a new one with `--set train.lr=...`.",
        RUN_UID,
        "30m",
    ),
    Alert(
        "ConvoyNumericFaults",
        "warning",
        f"sum {PER_RUN} (increase(convoy_numeric_faults_total[1h])) > 2.5",
        "{{ $labels.job }}: {{ $value | humanize }} losses or gradients in an hour were no numbers, or spikes",
        "Convoy returned to the state before each of them and left out the batch. So many of them point to an unstable"
        " training, or to a device that calculates wrongly.",
        "`convoy data verify {{ $labels.run }}` lists the samples that were left out. The same rank each time:"
        " replace its GPU. Different ranks: lower the learning rate, or use bf16 instead of fp16.",
        RELIABILITY_UID,
    ),
    Alert(
        "ConvoyGpuMemoryErrors",
        "warning",
        'sum by (job, run, rank) (increase(convoy_gpu_ecc_errors_total{kind="uncorrected"}[1h])) > 0',
        "{{ $labels.job }}: the GPU of rank {{ $labels.rank }} has uncorrected memory errors",
        "The GPU's memory lost data. A worker that used it crashes, and Convoy replaces it; on the same GPU it may"
        " crash again.",
        "The dashboard has the host and the UUID of the GPU. Drain the node, reset the GPU or replace it, and check it"
        " with `dcgmi diag`.",
        GPUS_UID,
        needs="gpu",
    ),
    Alert(
        "ConvoyGpuThrottled",
        "warning",
        'max by (job, run, rank, reason) (convoy_gpu_throttled{reason=~"power_brake|thermal|hardware"}) == 1',
        "{{ $labels.job }}: the GPU of rank {{ $labels.rank }} is throttled: {{ $labels.reason }}",
        "Heat or a fault of the power supply lowers the clock of a GPU. All ranks wait for it in each step. A power cap"
        " does not raise this alert.",
        "Check cooling and power of the host that the dashboard names. Drain the node if it stays.",
        GPUS_UID,
        "15m",
        needs="gpu",
    ),
)

ALERTS: tuple[Alert, ...] = STOPPED + AT_RISK + WASTE
