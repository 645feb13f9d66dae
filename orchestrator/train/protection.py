"""When state is copied into the vaults. Every rank decides alike, from what all of them exchanged."""

import time
from typing import Any

from orchestrator.domain.cadence import Cadence
from orchestrator.domain.events import EventKind
from orchestrator.domain.report import StepReport
from orchestrator.domain.session import Leave
from orchestrator.train.context import TrainContext
from orchestrator.train.exchange import global_min
from orchestrator.train.reporting import StepOutcome
from orchestrator.train.snapshots import NO_VAULT, Snapshots

HAND_OVER_ROUNDS = 100
HAND_OVER_PAUSE_S = 0.02


class Protection:
    """Takes snapshots as the spec's budget or interval says, never one over the last that is whole everywhere."""

    def __init__(self, context: TrainContext) -> None:
        checkpoint = context.spec.checkpoint
        self._context = context
        self._cadence = Cadence(checkpoint.overhead_budget, checkpoint.memory_interval_steps)
        self._last: int | None = None
        """Step of the last snapshot."""
        self._spent_s = 0.0
        self._told = False
        self._snapshots: Snapshots | None = None
        vault, session = context.session.vault, context.session
        if vault is not None and checkpoint.memory:
            self._snapshots = Snapshots(context.engine, vault, session.rank, session.world_size)
            self._snapshots.prepare()

    @property
    def replicated_step(self) -> int:
        """See `RankStep.replicated_step`."""
        return NO_VAULT if self._snapshots is None else self._snapshots.replicated_step

    def spent_s(self) -> float:
        """Seconds the last snapshot took, once."""
        spent_s, self._spent_s = self._spent_s, 0.0
        return spent_s

    def after_step(self, outcome: StepOutcome) -> bool:
        """Take a snapshot where one is due; whether the vaults hold this very step now. Collective."""
        if self._snapshots is None:
            return False
        self._tell_problem()
        self._cadence.measure(
            max(rank.step_s for rank in outcome.ranks), max(rank.phases.snapshot_s for rank in outcome.ranks)
        )
        if outcome.leave is Leave.REGROUP:
            return self._hand_over(outcome)
        self._snapshots.prepare()
        if outcome.replicated_step == NO_VAULT or not self._room(outcome.replicated_step):
            return False
        if self._last is not None and outcome.step - self._last < self._cadence.steps:
            return False
        self._take(outcome)
        return True

    def keep_report(self, report: StepReport) -> None:
        """Keep the report of a step with the state. Rank 0 only."""
        if self._snapshots is not None:
            self._snapshots.keep_report(report.step, report.to_json())

    def close(self) -> None:
        """Let go of the vault; it keeps what it has."""
        if self._snapshots is not None:
            self._snapshots.close()

    def _room(self, replicated_step: int) -> bool:
        """Whether the older slot may be written: the newer one is whole everywhere."""
        return self._last is None or replicated_step >= self._last

    def _hand_over(self, outcome: StepOutcome) -> bool:
        """The last snapshot of a gang that is formed anew: waits for the one before it. Collective."""
        snapshots, device = self._snapshots, self._context.device
        assert snapshots is not None
        for _ in range(HAND_OVER_ROUNDS):
            replicated_step = global_min(snapshots.replicated_step, device)
            if replicated_step == NO_VAULT:
                return False
            if self._room(replicated_step):
                self._take(outcome)
                return True
            time.sleep(HAND_OVER_PAUSE_S)
        return False

    def _take(self, outcome: StepOutcome) -> None:
        assert self._snapshots is not None
        position = outcome.first_position + self._context.global_batch
        extra: dict[str, Any] = {"loss": outcome.loss, "grad_norm": outcome.grad_norm}
        self._spent_s = self._snapshots.take(outcome.step, position, extra)
        self._last = outcome.step

    def _tell_problem(self) -> None:
        problem = self._snapshots.problem if self._snapshots is not None else None
        if problem is None or self._told:
            return
        self._told = True
        message = f"worker {self._context.session.rank}: state is not kept in memory: {problem}"
        self._context.session.report_event(EventKind.WARNING, {"message": message})
