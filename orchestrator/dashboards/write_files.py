"""Write the generated files of `monitoring/`: `python -m orchestrator.dashboards.write_files`.

The SDK of Grafana is needed; it is one of the developers' dependencies.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

from orchestrator.dashboards.boards.all_dashboards import DASHBOARDS
from orchestrator.dashboards.grafana_json import dashboard_json
from orchestrator.dashboards.rules.rule_files import rule_texts

FOLDER = "monitoring"


def dashboard_texts() -> Mapping[str, str]:
    """The dashboards, by their paths in `monitoring/`."""
    return {f"grafana/dashboards/{dashboard.uid}.json": dashboard_json(dashboard) for dashboard in DASHBOARDS}


def main() -> None:
    """Write the files of this checkout."""
    root = Path(__file__).parents[2] / FOLDER
    for name, text in {**rule_texts(), **dashboard_texts()}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"wrote {FOLDER}/{name}", file=sys.stderr)


if __name__ == "__main__":
    main()
