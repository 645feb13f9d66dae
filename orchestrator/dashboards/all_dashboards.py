"""The dashboards, in the order in which they are presented."""

from orchestrator.dashboards.fleet_dashboard import FLEET
from orchestrator.dashboards.goodput_dashboard import GOODPUT
from orchestrator.dashboards.gpu_dashboard import GPUS
from orchestrator.dashboards.panel_values import Dashboard
from orchestrator.dashboards.reliability_dashboard import RELIABILITY
from orchestrator.dashboards.run_dashboard import RUN

DASHBOARDS: tuple[Dashboard, ...] = (FLEET, RUN, GOODPUT, RELIABILITY, GPUS)
