"""What has to be done about drivers so that the world becomes what the database says.

Effects follow from rows and looks alone, so that a server that has just started repeats what a killed one had not done.
Each is harmless if it is repeated.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.control.queue_store.run_rows import RunRow
from orchestrator.control.ticking.fact_building import ON_THE_WAY_OUT
from orchestrator.control.ticking.run_sight import RunSight
from orchestrator.domain.queue.queue_states import QueueState

STOP_LIMIT_S = {QueueState.SUSPENDING: 300.0, QueueState.PAUSING: 300.0, QueueState.CANCELLING: 60.0}
"""How long a driver may take to save the state and end. Then it is ended: the newest state is in storage or in the
nodes' memory anyway."""
START_LIMIT_S = 300.0
"""How long a driver that was started may take until it has the run's lease."""
SEND_AGAIN_S = 5.0
"""From one request to a driver to its repetition."""
LAUNCHES_PER_TICK = 16
"""More drivers at once would only wait for each other: each imports a program and asks the cluster for places."""


class EffectKind(StrEnum):
    """What is done."""

    LAUNCH = "launch"
    GRANT = "grant"
    STOP = "stop"
    KILL = "kill"


@dataclass(frozen=True)
class Effect:
    """One thing to do."""

    kind: EffectKind
    row: RunRow


def effect_for(row: RunRow, sight: RunSight, hung: bool) -> Effect | None:
    """What has to be done about a run's driver now; None if nothing. `hung`: it exists and does nothing."""
    if row.state is QueueState.STARTING:
        if not row.launched:
            return Effect(EffectKind.LAUNCH, row) if sight.gone else None
        late = sight.gone is False and sight.in_state_s >= START_LIMIT_S
        return Effect(EffectKind.KILL, row) if late and not _renews(sight) else None
    if sight.gone:
        return None
    if row.state is QueueState.ACTIVE:
        if hung:
            return Effect(EffectKind.KILL, row)
        behind = sight.facts is not None and sight.facts.answered < row.grant_number
        return Effect(EffectKind.GRANT, row) if behind else None
    if row.state in ON_THE_WAY_OUT:
        late = sight.in_state_s >= STOP_LIMIT_S[row.state]
        return Effect(EffectKind.KILL if late else EffectKind.STOP, row)
    return None


def _renews(sight: RunSight) -> bool:
    return sight.facts is not None and sight.facts.lease_moved


class SentEffects:
    """What this process has sent, so that it is not sent again in every tick. Forgotten with the process."""

    def __init__(self) -> None:
        self._sent: dict[tuple[str, EffectKind, int], float] = {}

    def due(self, effect: Effect, clock_s: float) -> bool:
        """Whether it was not sent lately."""
        before_s = self._sent.get(_key(effect))
        return before_s is None or clock_s - before_s >= SEND_AGAIN_S

    def sent(self, effect: Effect, clock_s: float) -> None:
        """It was sent."""
        self._sent[_key(effect)] = clock_s

    def keep(self, rows: Mapping[str, RunRow]) -> None:
        """Forget runs that do not matter any more."""
        self._sent = {key: sent_s for key, sent_s in self._sent.items() if key[0] in rows}


def _key(effect: Effect) -> tuple[str, EffectKind, int]:
    return effect.row.id, effect.kind, effect.row.grant_number
