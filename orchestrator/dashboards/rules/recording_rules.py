"""Figures of each run over minutes, recorded for the alerts and for queries over weeks."""

from orchestrator.dashboards.rules.rule_values import PER_RUN, RecordingRule

TOKENS_RATE = "job_run:convoy_tokens:rate5m"
STEP_MEAN = "job_run:convoy_step_duration_seconds:mean15m"
LOSS_MEAN = "job_run:convoy_loss:mean10m"
WORKERS = "job_run:convoy_workers:max"
AT_RISK_S = "job_run:convoy_work_at_risk_seconds:max"
GOODPUT_2H = "job_run:convoy_goodput:ratio2h"
_TIME = "convoy_worker_time_seconds"

RECORDING_RULES: tuple[RecordingRule, ...] = (
    RecordingRule(TOKENS_RATE, f"sum {PER_RUN} (rate(convoy_tokens_total[5m]))", "Tokens per second, pauses included."),
    RecordingRule(
        STEP_MEAN,
        f"sum {PER_RUN} (rate(convoy_step_duration_seconds_sum[15m]))"
        f" / sum {PER_RUN} (rate(convoy_step_duration_seconds_count[15m]))",
        "Mean seconds of a step.",
    ),
    RecordingRule(LOSS_MEAN, f"avg {PER_RUN} (avg_over_time(convoy_loss[10m]))", "Mean training loss."),
    RecordingRule(WORKERS, f"max {PER_RUN} (convoy_workers)", "Workers that train."),
    RecordingRule(
        AT_RISK_S,
        f"max {PER_RUN} (convoy_steps_at_risk) * on (job, run) {STEP_MEAN}",
        "Seconds of training that the loss of one node would cost.",
    ),
    RecordingRule(
        GOODPUT_2H,
        f'sum {PER_RUN} (delta({_TIME}{{class="productive"}}[2h])) / sum {PER_RUN} (delta({_TIME}[2h]))',
        "Share of the workers' time of the last two hours that was spent on steps that count.",
    ),
)
