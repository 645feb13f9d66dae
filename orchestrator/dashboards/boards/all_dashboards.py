"""The dashboards, in the order in which they are presented."""

from orchestrator.dashboards.boards.fleet_dashboard import FLEET
from orchestrator.dashboards.boards.goodput_dashboard import GOODPUT
from orchestrator.dashboards.boards.gpu_dashboard import GPUS
from orchestrator.dashboards.boards.reliability_dashboard import RELIABILITY
from orchestrator.dashboards.boards.run_dashboard import RUN
from orchestrator.dashboards.panel_values import Board

DASHBOARDS: tuple[Board, ...] = (FLEET, RUN, GOODPUT, RELIABILITY, GPUS)
