"""What recording rules and alerts consist of, as plain values. `rule_files` makes Prometheus' files from them."""

from dataclasses import dataclass
from typing import Literal

from orchestrator.dashboards.panel_values import Need

Severity = Literal["critical", "warning"]
"""`critical` is for waking a person at night, `warning` for the next working day."""
PER_RUN = "by (job, run)"


@dataclass(frozen=True)
class RecordingRule:
    """A figure that Prometheus works out at each evaluation, so that alerts can look back at it."""

    record: str
    """`level:metric:operations`, as https://prometheus.io/docs/practices/rules/ has it."""
    expr: str
    meaning: str


@dataclass(frozen=True)
class Alert:
    """One alert, and its section of the runbook."""

    name: str
    severity: Severity
    expr: str
    summary: str
    """One line; a template of Prometheus."""
    meaning: str
    """What has happened, and what Convoy does and does not do about it."""
    action: str
    """What a person does now."""
    dashboard: str
    """`uid` of the dashboard that shows it."""
    pending: str = "0m"
    """How long the condition must hold."""
    needs: Need | None = None
