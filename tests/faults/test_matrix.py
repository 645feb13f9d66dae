"""The fault matrix: every fault in every phase of a run's life. The curve is the undisturbed one, nothing is left.

Phases are hit for real: a process stands still at the point (see `pauses`) while the fault strikes, and goes on after.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.events import (
    CheckpointRejected,
    FaultInjected,
    NumericFaultFound,
    RecoveryFinished,
    RecoveryReason,
    RecoveryStarted,
    RunState,
    WorkerHung,
)
from orchestrator.domain.fault_plan import Arranged
from orchestrator.domain.policy.numeric import Injection, Skip
from tests.cluster.gang_runs import all_pids, own_temporary_directory, shared_memory
from tests.cluster.pauses import LATE_VARIABLE, VARIABLE, Pauses, Point, let_runs_pause
from tests.cluster.standing import standing_cluster
from tests.faults.ledger_account import check_ledger
from tests.faults.striking import (
    BATCH,
    NAN_STEP,
    STRIKE_STEP,
    THREE,
    TWO,
    Striker,
    curve,
    driver_is_killed,
    nothing_is_left,
    strike,
    train,
)

pytestmark = pytest.mark.faults

FAULTS = ("kill-worker", "kill-node", "silence-node", "hang-rank", "nan", "corrupt-shard", "kill-driver")
PHASES = ("step", "snapshot", "replication", "durable", "waiting", "restore")
"""`waiting`, `restore`: in the middle of the recovery from a killed worker, before and after the new gang is formed."""
IMPOSSIBLE = {
    ("nan", "snapshot"): "the thread that copies the state is the one that computes losses",
    ("nan", "waiting"): "nobody computes a loss before the gang is formed: `restore` has the next one",
}
QUICK = {
    ("kill-worker", "snapshot"),
    ("kill-node", "replication"),
    ("kill-node", "restore"),
    ("silence-node", "durable"),
    ("hang-rank", "waiting"),
    ("nan", "restore"),
    ("corrupt-shard", "durable"),
}
"""These run in every `make test`: every phase but a mere step, and every fault but a killed driver, which have tests of
their own. The others run in `make soak`."""
STOCK = ("silence-node", "durable")
"""Its workers start without the fork server. They are two: each takes five seconds of CPU to start."""


REASONS = {
    "kill-worker": {RecoveryReason.WORKER_DIED},
    "kill-node": {RecoveryReason.NODE_DIED, RecoveryReason.WORKER_DIED},  # what is seen first
    "silence-node": {RecoveryReason.NODE_SILENT, RecoveryReason.NODE_DIED},  # for Ray it is dead at last
    "hang-rank": {RecoveryReason.HANG},
    "corrupt-shard": {RecoveryReason.WORKER_DIED},
}


def cells() -> Iterator[Any]:
    """Parameters of the matrix."""
    for fault in FAULTS:
        for phase in PHASES:
            marks = [] if (fault, phase) in QUICK else [pytest.mark.soak]
            if (fault, phase) in IMPOSSIBLE:
                marks.append(pytest.mark.skip(reason=IMPOSSIBLE[fault, phase]))
            yield pytest.param(fault, phase, marks=marks, id=f"{fault}-{phase}")


@pytest.fixture(autouse=True)
def pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pauses]:
    """After `tmp_path`, which is made under the usual directory for temporary files."""
    with own_temporary_directory() as directory:
        monkeypatch.setenv(VARIABLE, str(directory / "pauses"))
        let_runs_pause(monkeypatch.setattr)
        yield Pauses(directory / "pauses")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of the job when nothing happens to it."""
    directory = tmp_path_factory.mktemp("undisturbed")
    with own_temporary_directory():
        return curve(train(directory, Striker()))


@pytest.fixture(scope="module")
def without_batch(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of the job when it never had the samples of `NAN_STEP`."""
    directory = tmp_path_factory.mktemp("without")
    left_out = Arranged(skips=(Skip((NAN_STEP - 1) * BATCH, BATCH, 0, 0.0, None),))
    with own_temporary_directory():
        return curve(train(directory, Striker(), left_out))


@pytest.mark.parametrize(("fault", "phase"), cells())
def test_the_curve_does_not_show_it(
    fault: str, phase: str, tmp_path: Path, pauses: Pauses, request: pytest.FixtureRequest
) -> None:
    pids, shm = all_pids(), shared_memory()
    if (fault, phase) == STOCK:
        request.getfixturevalue("stock_workers")
    if fault == "kill-driver":
        killed_driver(phase, tmp_path, pauses, request.getfixturevalue("undisturbed"))
    elif fault == "nan":
        numeric(phase, tmp_path, pauses, request.getfixturevalue("without_batch"))
    else:
        struck(fault, phase, tmp_path, pauses, request.getfixturevalue("undisturbed"))
    nothing_is_left(pids, shm)


def test_a_worker_is_lost_while_its_state_is_copied_beside_the_next_step(
    tmp_path: Path, pauses: Pauses, undisturbed: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As snapshots are made on GPUs. Its copy is lost, those of the others are complete: the step before it counts."""
    monkeypatch.setenv(LATE_VARIABLE, "0.002")
    pids, shm = all_pids(), shared_memory()
    struck("kill-worker", "snapshot", tmp_path, pauses, undisturbed)
    nothing_is_left(pids, shm)


def struck(fault: str, phase: str, directory: Path, pauses: Pauses, undisturbed: list[float]) -> None:
    """A fault that comes from outside: it strikes while a process stands still in the phase."""
    on_node = fault in ("kill-node", "silence-node")
    nodes = TWO if (fault, phase) == STOCK else THREE
    victim = nodes["cluster"]["nodes"] - 1 if on_node else 1
    with Striker(pauses, lambda striker, rank: strike(fault, striker, rank)) as striker:
        if phase == "waiting":
            striker.plan(Point.STEP, STRIKE_STEP, victim, first="kill-worker")
            striker.strike_at(RecoveryStarted, 1 if on_node else 0)
        elif phase == "restore":
            striker.plan(Point.STEP, STRIKE_STEP, victim, first="kill-worker")
            striker.then(Point.RESTORE, 0, 1 if on_node else 0)
        else:
            striker.plan(Point(phase), STRIKE_STEP, victim)
        outcome = train(directory, striker, **(nodes if on_node else {}))
    assert (outcome.state, outcome.reason, striker.struck) == (RunState.SUCCEEDED, None, 1), striker.story()
    expected = undisturbed
    if {step.world_size for step in striker.steps} != {2}:
        expected = pytest.approx(undisturbed, rel=1e-5)
    assert curve(outcome) == expected
    ledger = check_ledger(outcome.run_dir)
    assert REASONS[fault] & {each.reason for each in ledger.by_incident}, striker.story()
    incidents = len(striker.of(RecoveryStarted))
    # Who is lost before the others have noticed the first loss is got over together with it.
    assert incidents == 1 if phase not in ("waiting", "restore") else incidents in (1, 2), striker.story()
    assert len(striker.of(WorkerHung)) == (fault == "hang-rank"), striker.story()
    assert bool(striker.of(CheckpointRejected)) == (fault == "corrupt-shard"), striker.story()


def numeric(phase: str, directory: Path, pauses: Pauses, without_batch: list[float]) -> None:
    """A loss that is no number, in the step after the one whose state is just being copied or written."""
    with Striker(pauses, lambda striker, rank: None) as striker:
        if phase in ("replication", "durable"):
            striker.plan(Point(phase), NAN_STEP - 1, 1, hold=False, until=RecoveryStarted)
        elif phase == "restore":
            striker.plan(Point.BEGIN, NAN_STEP, 1, first="kill-worker")
        # The worker that is killed does not come to its loss: only the one that takes its place does.
        rank = 1 if phase == "restore" else 0
        outcome = train(directory, striker, Arranged(injections=(Injection("nan", NAN_STEP, rank),)))
    assert (outcome.state, outcome.reason) == (RunState.SUCCEEDED, None), striker.story()
    assert curve(outcome) == without_batch
    assert check_ledger(outcome.run_dir).by_incident[-1].reason is RecoveryReason.NUMERIC_FAULT
    assert len(striker.of(FaultInjected)) == 1
    assert len(striker.of(NumericFaultFound)) == 1
    started = striker.of(RecoveryStarted)
    assert len(started) == (2 if phase == "restore" else 1), striker.story()
    if phase == "restore":  # no step was made between the two
        assert len(striker.of(RecoveryFinished)) == 1, striker.story()


def killed_driver(phase: str, directory: Path, pauses: Pauses, undisturbed: list[float]) -> None:
    """On a cluster that outlives it; another driver goes on."""
    with standing_cluster(2) as address:
        assert driver_is_killed(phase, directory, pauses, address) == undisturbed
    check_ledger(next((directory / "runs").glob("*/run.json")).parent)
