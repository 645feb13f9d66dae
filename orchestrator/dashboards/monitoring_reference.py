"""`docs/metrics.md`: the metrics with their uses, the dashboards and the runbook.

`python -m orchestrator.dashboards.monitoring_reference > docs/metrics.md`; a test compares the two.
"""

from orchestrator.dashboards.boards.all_dashboards import DASHBOARDS
from orchestrator.dashboards.metric_uses import uses
from orchestrator.dashboards.rules.alert_rules import ALERTS
from orchestrator.dashboards.rules.recording_rules import RECORDING_RULES
from orchestrator.dashboards.rules.rule_values import Alert
from orchestrator.metrics.metric_catalog import reference_markdown

_DASHBOARDS = """
## Dashboards

`monitoring/grafana/dashboards` has them as JSON, for Grafana 11 to 13: import the files, or provision the folder. They
need a Prometheus that scrapes the runs, and nothing else; the recording rules are for the alerts. Panels of GPUs, of
cost and of host exporters say what they lack if there is none of it.
"""
_ALERTS = """
## Alerts

`monitoring/prometheus/rules` has the rules. What Convoy handles by itself, such as the loss of a worker or a node,
raises no alert. Severity `critical` is for waking a person, `warning` for the next working day. Each alert has links to
its section here and to its dashboard: set the external labels `docs_url` and `grafana_url` in Prometheus' configuration
to where these documents and Grafana are.

| Alert | Severity | After | Fires if |
| --- | --- | --- | --- |
"""
_RULES = """
## Recording rules

| Series | What it is |
| --- | --- |
"""


def monitoring_markdown() -> str:
    """The whole document."""
    dashboards = "".join(f"\n**{each.title}** (`{each.uid}`): {each.description}\n" for each in DASHBOARDS)
    rows = "".join(
        f"| [{alert.name}](#{alert.name.lower()}) | {alert.severity} | {alert.pending} | {_plain(alert.summary)} |\n"
        for alert in ALERTS
    )
    rules = "".join(f"| `{rule.record}` | {rule.meaning} |\n" for rule in RECORDING_RULES)
    runbook = "".join(_section(alert) for alert in ALERTS)
    return f"{reference_markdown(uses())}{_DASHBOARDS}{dashboards}{_ALERTS}{rows}{runbook}{_RULES}{rules}"


def _section(alert: Alert) -> str:
    return f"\n### {alert.name}\n\n{_plain(alert.meaning)}\n\n**What to do.** {_plain(alert.action)}\n"


def _plain(text: str) -> str:
    """Without the syntax of Prometheus' templates."""
    text = text.replace("{{ $labels.job }}: ", "").replace("{{ $labels.job }} ", "").replace("{{ $labels.run }}", "RUN")
    for label in ("rank", "reason"):
        text = text.replace(f"{{{{ $labels.{label} }}}}", label.upper())
    for function in (" | humanizeDuration", " | humanizePercentage", " | humanize", ""):
        text = text.replace(f"{{{{ $value{function} }}}}", "N")
    return text


def main() -> None:
    """Print the document."""
    print(monitoring_markdown(), end="")


if __name__ == "__main__":
    main()
