"""One step's time by class, from the spread of its ranks. Pure."""

from math import isfinite

from orchestrator.domain.step_report import StepReport
from orchestrator.goodput.time_class import TimeClass


def split_step(report: StepReport, communication_share: float = 0.0) -> dict[TimeClass, float]:
    """Seconds of a worker by class, in the mean over the workers; they add up to the step's wall time.

    What a step would have saved without its slowest rank is `straggling`: the own time of that rank minus the median
    one, for every worker, since all of them spend it, the slowest in its work and the others in collectives. What the
    slowest waited for data remains `data_wait`. The rest of the collectives is `communication_wait`. On GPUs some steps
    are measured; the others are taken to have had the `communication_share` of the step before. Own times are those of
    data and forward there: see `RankReport.own_times_s`.
    """
    world_size, spread = max(1, report.world_size), report.ranks.spread
    left = _Left(report.step_time_s)
    split = {TimeClass.CHECKPOINT_STALL: left.take(spread.checkpoint_s.mean(world_size))}
    split[TimeClass.DATA_WAIT] = left.take(spread.data_wait_s.mean(world_size))
    own, data = spread.own_s, spread.data_wait_s
    lag_s = max(0.0, own.max - own.p50) * world_size
    own_lag_s = min(lag_s, max(0.0, own.total - own.p50 * world_size))
    of_data_s = min(own_lag_s, max(0.0, data.total - data.p50 * world_size))
    split[TimeClass.STRAGGLING] = left.take((lag_s - of_data_s) / world_size)
    measured = spread.communication_s
    communication_s = (measured.total - lag_s + own_lag_s) / world_size if measured is not None else 0.0
    estimated_s = communication_share * report.step_time_s if measured is None else 0.0
    split[TimeClass.COMMUNICATION_WAIT] = left.take(communication_s + estimated_s)
    split[TimeClass.PRODUCTIVE] = left.seconds
    return split


class _Left:
    """Seconds of a step that no class has taken yet."""

    def __init__(self, seconds: float) -> None:
        self.seconds = max(0.0, seconds) if isfinite(seconds) else 0.0

    def take(self, seconds: float) -> float:
        """Up to so many of them."""
        taken = min(self.seconds, max(0.0, seconds)) if isfinite(seconds) else 0.0
        self.seconds -= taken
        return taken
