"""Decides when state is copied into the vaults. Every rank decides alike, from what all ranks exchanged."""

import math
import time
from collections.abc import Callable

from orchestrator.checkpoint.storage.checkpoint_catalog import directory_name
from orchestrator.checkpoint.storage.storage import is_url
from orchestrator.data.samples.skipping_order import BatchOrder
from orchestrator.domain.events import WarningIssued
from orchestrator.domain.policy.cadence import Cadence
from orchestrator.domain.session import VaultAccess
from orchestrator.domain.step_report import StepReport
from orchestrator.json_values import JsonObject
from orchestrator.planner.state_size import STATE_BYTES_PER_PARAMETER
from orchestrator.train.collectives.exchange import global_min
from orchestrator.train.snapshot.snapshots import NO_VAULT, Snapshots
from orchestrator.train.step_reporting import StepOutcome
from orchestrator.train.train_context import TrainContext

HAND_OVER_PAUSE_S = 0.02
HAND_OVER_S = 2.0
"""How long a gang waits before it leaves until the last snapshot is complete everywhere, regardless of its size."""
HAND_OVER_BYTES_PER_S = 250e6
"""And how much longer, for the bytes of a rank: 8 ranks of a node at 2 GB/s, a third of a network of 50 Gbit/s."""


def hand_over_rounds(parameters: int, world_size: int) -> int:
    """How often the ranks check together whether the last snapshot is complete; the same on all ranks."""
    limit_s = HAND_OVER_S + STATE_BYTES_PER_PARAMETER * parameters / world_size / HAND_OVER_BYTES_PER_S
    return math.ceil(limit_s / HAND_OVER_PAUSE_S)


class SnapshotPolicy:
    """Takes snapshots by the spec's budget or interval, and never overwrites the last one that is complete
    everywhere."""

    def __init__(self, context: TrainContext, order: BatchOrder, extra: Callable[[], JsonObject]) -> None:
        """`extra`: what of the loop a restore needs."""
        self._order, self._extra = order, extra
        checkpoint = context.spec.checkpoint
        self._context = context
        self._cadence = Cadence(checkpoint.overhead_budget, checkpoint.memory_interval_steps)
        self._last: int | None = None
        """Step of the last snapshot."""
        self._anew = False
        """Some rank had no vault since then."""
        self._spent_s = 0.0
        self._told = self._told_slow = False
        self.stored: set[int] = set()
        """Steps that the vaults were asked to write as checkpoints; they may still be writing."""
        self._snapshots: Snapshots | None = None
        self._vault: VaultAccess | None = None
        self.follow()
        if self._snapshots is not None:
            self._snapshots.prepare()

    def follow(self) -> None:
        """Switch to the vault that the session names now, if it has changed: a vault that ended is replaced.

        Called before the ranks exchange their facts: this rank then reports NO_VAULT, and all start again.
        """
        context, vault = self._context, self._context.session.vault
        if vault is None or vault == self._vault or not context.spec.checkpoint.memory:
            return
        if self._snapshots is not None:
            if self._snapshots.asking:
                return  # not yet: its thread would outlive it
            self._snapshots.close()
        session = context.session
        self._vault, self._told = vault, False
        self._snapshots = Snapshots(context.engine, vault, session.rank, session.world_size, session.progress)

    @property
    def replicated_step(self) -> int:
        """See `RankStep.replicated_step`. If all start again, not before the peers have what this rank has kept,
        because the vault still reads it."""
        snapshots = self._snapshots
        if snapshots is None or (self._anew and not snapshots.settled):
            return NO_VAULT
        return snapshots.replicated_step

    def spent_s(self) -> float:
        """Seconds that the last snapshot took from training, once."""
        spent_s, self._spent_s = self._spent_s, 0.0
        return spent_s + (self._snapshots.stalled_s() if self._snapshots is not None else 0.0)

    def fence(self) -> None:
        """Called before each update, which must not change what a snapshot is still copying."""
        if self._snapshots is not None:
            self._snapshots.fence()

    def flush(self) -> None:
        """Wait until this rank's vault holds what was taken last. Not collective."""
        if self._snapshots is not None:
            self._snapshots.flush()

    def after_step(self, outcome: StepOutcome) -> bool:
        """Take a snapshot if one is due; return whether the vaults hold this step, or will as soon as it is copied. If
        training is left for another generation, they hold it. Collective."""
        if not self._context.spec.checkpoint.memory:
            return False
        self._tell_problem()
        self._cadence.measure(
            max(rank.step_s for rank in outcome.ranks), max(rank.phases.snapshot_s for rank in outcome.ranks)
        )
        if outcome.replicated_step == NO_VAULT:
            self._last, self._anew = None, True
        if outcome.leave.regroup:
            return self._held(outcome)
        if self._snapshots is not None:
            self._snapshots.prepare()
        if outcome.replicated_step == NO_VAULT or not self._room(outcome.replicated_step):
            return False
        if self._last is not None and outcome.step - self._last < self._cadence.steps:
            return False
        self._take(outcome)
        return True

    def store(self, outcome: StepOutcome, place: str, extra: JsonObject) -> bool:
        """Have the vaults write this step as a checkpoint in the background; False if they cannot. Collective.

        A vault on another host sees a directory of the driver only if the file system is shared.
        """
        reaches = is_url(place) or self._context.session.shares_files
        if not self._held(outcome, reaches):
            return False
        assert self._snapshots is not None
        self.stored.add(outcome.step)
        self._snapshots.store(outcome.step, place, directory_name(outcome.step), extra)
        return True

    def keep(self, outcome: StepOutcome) -> bool:
        """Put this step into the vaults out of turn; return whether they hold it. Collective."""
        return self._context.spec.checkpoint.memory and self._held(outcome)

    def keep_report(self, report: StepReport) -> None:
        """Keep the report of a step with the state. Rank 0 only."""
        if self._snapshots is not None:
            self._snapshots.keep_report(report.step, report.to_json())

    def close(self) -> None:
        """Disconnect from the vault; it keeps what it has."""
        if self._snapshots is not None:
            self._snapshots.close()

    def _room(self, replicated_step: int) -> bool:
        """Whether the older slot may be written: the newer one is complete everywhere."""
        return self._last is None or replicated_step >= self._last

    def _held(self, outcome: StepOutcome, able: bool = True) -> bool:
        """Put this step into the vaults after the previous snapshot is complete; False if some rank is not `able` to or
        it takes too long. Collective."""
        session = self._context.session
        for _ in range(hand_over_rounds(self._context.size.parameters, session.world_size)):
            session.progress()  # for a bounded time, and as long as all ranks take part
            if self._last == outcome.step:
                self.flush()  # if that fails, this rank says NO_VAULT
            replicated_step = global_min(self.replicated_step if able else NO_VAULT, self._context.device)
            if replicated_step == NO_VAULT:
                return False
            if self._last == outcome.step:
                return True
            if self._room(replicated_step):
                self._take(outcome)
            else:
                time.sleep(HAND_OVER_PAUSE_S)
        return False

    def _take(self, outcome: StepOutcome) -> None:
        assert self._snapshots is not None
        position = self._order.advance(outcome.first_position, 1)
        self._spent_s += self._snapshots.take(outcome.step, position, self._extra())
        self._last, self._anew = outcome.step, False

    def _tell_problem(self) -> None:
        snapshots, session = self._snapshots, self._context.session
        if snapshots is None:
            return
        if snapshots.slow is not None and not self._told_slow and session.local_rank == 0:
            self._told_slow = True
            session.report_event(WarningIssued(f"worker {session.rank}: {snapshots.slow}"))
        if snapshots.problem is not None and not self._told:
            self._told = True
            message = f"worker {session.rank}: state is not kept in memory: {snapshots.problem}"
            session.report_event(WarningIssued(message))
