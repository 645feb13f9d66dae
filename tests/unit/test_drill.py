"""What a drill plans before anything is started, and the score it keeps."""

import random
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoint.storage.storage import LocalStorage
from orchestrator.domain.errors import UsageError
from orchestrator.domain.events import (
    CheckpointFailed,
    CheckpointSaved,
    EventBody,
    FaultInjected,
    GangResized,
    NodeDraining,
    RecoveryFinished,
    RecoveryStarted,
    RunCreated,
    TrainingPlanned,
    WorkerSlow,
)
from orchestrator.domain.policy.scorecard import DrillFault, FaultResult
from orchestrator.drill.drill_course import drill
from orchestrator.drill.drill_plan import (
    ON_STORAGE,
    REAL,
    Machine,
    Undisturbed,
    injections,
    objection,
    permitted,
    plan,
)
from orchestrator.drill.drill_tally import SAYS, DrillTally
from orchestrator.drill.node_network import POOL, free_network
from orchestrator.drill.shard_damage import corrupt_newest
from orchestrator.spec.loading.load import LoadedJob, load_job
from tests.cluster.entries import a_step
from tests.cluster.gang_runs import write_job
from tests.events import event

pytestmark = pytest.mark.unit

ABLE = Machine(no_mount=None, no_network=None, endpoint="http://127.0.0.1:9000", memory_bytes=8 << 30)
SEEN = Undisturbed(steps=200, micro_batch=8, checkpoint_bytes=1 << 20)


def a_job(directory: Path, **changes: Any) -> LoadedJob:
    return load_job(write_job(directory, **changes))


def drawn(job: LoadedJob, choices: list[DrillFault]) -> list[DrillFault]:
    planned = plan(DrillFault.RANDOM, range(1, 201), choices, job.spec, SEEN, random.Random(0))
    assert [step for step, _ in planned] == list(range(1, 201))
    return [fault for _, fault in planned]


@pytest.mark.parametrize(("recovery", "most"), [({}, 3), ({"max_rollbacks": 1}, 1), ({"on_nan": "continue"}, 0)])
def test_random_faults_are_no_more_of_a_kind_than_the_job_gets_over(
    recovery: dict[str, Any], most: int, tmp_path: Path
) -> None:
    kinds = drawn(a_job(tmp_path, recovery=recovery), list(REAL))
    assert kinds.count(DrillFault.NAN) == most
    assert kinds.count(DrillFault.OOM) == 3  # 8 -> 4 -> 2 -> 1
    assert set(kinds) | {DrillFault.NAN} == set(REAL)


def test_random_leaves_out_what_job_and_machine_do_not_permit_and_says_why(tmp_path: Path) -> None:
    poor = Machine(no_mount="mount: permission denied", no_network="not root", endpoint="", memory_bytes=8 << 30)
    choices, left_out = permitted(a_job(tmp_path, cluster={"nodes": 1}).spec, poor, replace(SEEN, micro_batch=1))
    assert set(choices) == {
        DrillFault.KILL_WORKER, DrillFault.CORRUPT_SHARD, DrillFault.NAN, DrillFault.HANG_RANK, DrillFault.KILL_DRIVER
    }  # fmt: skip
    assert set(left_out) == set(REAL) - set(choices)
    assert "permission denied" in left_out[DrillFault.DISK_FULL]
    checkpoint = {"interval_steps": 10, "storage": "s3://bucket/path"}
    choices, left_out = permitted(a_job(tmp_path, checkpoint=checkpoint).spec, ABLE, SEEN)
    assert set(left_out) == {DrillFault.DISK_FULL}
    choices, left_out = permitted(a_job(tmp_path, checkpoint={"interval_steps": 10}).spec, ABLE, SEEN)
    assert set(left_out) == {DrillFault.BUCKET_DOWN}


@pytest.mark.parametrize(
    ("recovery", "times"), [({"max_rollbacks": 1}, 2), ({"on_nan": "continue"}, 1), ({"on_nan": "stop"}, 2)]
)
def test_more_numeric_faults_than_the_job_gets_over_are_refused_at_once(
    recovery: dict[str, Any], times: int, tmp_path: Path
) -> None:
    job = a_job(tmp_path, recovery=recovery)
    with pytest.raises(UsageError, match="more than the job recovers from") as raised:
        drill(job, tmp_path / "runs", DrillFault.NAN, times, 0, [], threading.Event(), print)
    assert raised.value.hint == f"--set recovery.on_nan=rollback_and_skip --set recovery.max_rollbacks={times}"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("fault", "job", "machine", "said"),
    [
        (DrillFault.PARTITION, {}, replace(ABLE, no_network="Operation not permitted"), "Operation not permitted"),
        (DrillFault.PARTITION, {"cluster": {"nodes": 1}}, ABLE, "has only one"),
        (DrillFault.KILL_NODE, {"cluster": {"nodes": 1}}, ABLE, "has only one"),
        (DrillFault.SLOW_RANK, {"train": {"steps": 79, "global_batch": 8, "lr": 1e-3}}, ABLE, "79 are too few"),
        (DrillFault.DISK_FULL, {}, ABLE, "interval_steps is auto"),
        (
            DrillFault.DISK_FULL,
            {"checkpoint": {"interval_steps": 10}},
            replace(ABLE, no_mount="must be root"),
            "be root",
        ),
        (DrillFault.DISK_FULL, {"checkpoint": {"storage": "s3://b/p"}}, ABLE, "fills a directory"),
        (DrillFault.BUCKET_DOWN, {"checkpoint": {"interval_steps": 10}}, ABLE, "the job has none"),
        (DrillFault.BUCKET_DOWN, {"checkpoint": {"storage": "s3://b/p"}}, replace(ABLE, endpoint=""), "not set"),
        (
            DrillFault.BUCKET_DOWN,
            {"checkpoint": {"storage": "s3://b/p"}},
            replace(ABLE, endpoint="https://s3"),
            "https",
        ),
    ],
)
def test_what_is_not_permitted_is_refused_before_the_undisturbed_run(
    fault: DrillFault, job: dict[str, Any], machine: Machine, said: str, tmp_path: Path
) -> None:
    why = objection(fault, 1, a_job(tmp_path, **job).spec, machine)
    assert why is not None
    assert said in why.message
    assert why.hint


@pytest.mark.parametrize(
    ("fault", "times", "seen", "said"),
    [
        (DrillFault.OOM, 4, SEEN, "cannot be halved 4 times"),
        (DrillFault.SLOW_RANK, 4, replace(SEEN, steps=50), "too few"),
        (DrillFault.DISK_FULL, 10, SEEN, "two checkpoints after each"),
        (DrillFault.DISK_FULL, 1, replace(SEEN, checkpoint_bytes=1 << 30), "over half of the free memory"),
    ],
)
def test_what_the_undisturbed_run_shows_is_held_against_it(
    fault: DrillFault, times: int, seen: Undisturbed, said: str, tmp_path: Path
) -> None:
    train = {"epochs": 1, "global_batch": 8, "lr": 1e-3}  # the number of steps depends on the data
    spec = a_job(tmp_path, checkpoint={"interval_steps": 10}, train=train).spec
    assert objection(fault, times, spec, ABLE) is None
    why = objection(fault, times, spec, ABLE, seen)
    assert why is not None
    assert said in why.message
    assert why.hint


def test_workers_make_some_of_the_faults_themselves(tmp_path: Path) -> None:
    planned = [(4, DrillFault.NAN), (8, DrillFault.KILL_NODE), (12, DrillFault.OOM)]
    made = injections(planned, a_job(tmp_path, resources={"workers": 1}).spec, random.Random(0))
    assert [(each.kind, each.step, each.rank) for each in made] == [("nan", 5, 0), ("oom", 13, 0)]


class Score:
    """A tally, told of events at times."""

    def __init__(self) -> None:
        self.tally = DrillTally()
        self.tell(TrainingPlanned, 0, world_size=3)

    def tell(self, kind: type[EventBody], time_s: float, **fields: Any) -> None:
        self.tally.on_event(event(kind, time_s, **fields))

    def step(self, step: int, time_s: float = 0.0, world_size: int = 3) -> None:
        self.tally.on_step(replace(a_step(step, world_size), time_s=time_s))

    @property
    def result(self) -> FaultResult:
        return self.tally.results[-1]


def test_a_lost_node_is_known_and_over_with_the_recovery() -> None:
    score = Score()
    score.step(7)
    score.tally.struck(DrillFault.PARTITION, 7, 1, 100.0)
    assert (score.tally.open, score.tally.known) == (DrillFault.PARTITION, False)
    score.tell(RecoveryStarted, 104, detected_s=103.5)
    assert score.tally.known
    score.tell(RecoveryFinished, 106, steps_recomputed=1, world_size=2)
    assert score.tally.open is None
    assert score.result == FaultResult("partition", 7, 1, 3.5, 6.0, 1, 3, 2)


@pytest.mark.parametrize("fault", ON_STORAGE)
def test_failing_storage_is_over_when_a_checkpoint_is_saved_again(fault: DrillFault) -> None:
    score = Score()
    score.step(7)
    score.tally.struck(fault, 7, None, 100.0)
    score.tell(CheckpointSaved, 100.1, step=6)  # it was under way
    score.step(8, 101)
    assert (score.tally.open, score.tally.known) == (fault, False)
    score.tell(CheckpointFailed, 101.5, step=7, fault="other")  # for another reason
    assert not score.tally.known
    score.tell(CheckpointFailed, 102, step=8, fault=SAYS[fault])
    score.step(9, 103)
    assert score.tally.known
    score.tell(CheckpointSaved, 104, step=10)
    assert score.result == FaultResult(fault.value, 7, None, 2.0, 4.0, 0, 3, 3)


def test_a_lost_driver_is_known_and_over_with_another_one() -> None:
    score = Score()
    score.step(7)
    score.tally.struck(DrillFault.KILL_DRIVER, 7, None, 100.0)
    score.step(8, 100.1)  # it had said so
    assert not score.tally.known
    score.tell(RunCreated, 103, resumed_from_step=5)
    score.step(6, 109, world_size=2)
    assert score.result == FaultResult("kill-driver", 7, None, 3.0, 9.0, 3, 3, 2)
    score = Score()
    score.step(7)
    score.tally.struck(DrillFault.KILL_DRIVER, 7, None, 100.0)
    score.tell(RunCreated, 103, resumed_from_step=None)
    score.step(1, 109)
    assert score.result.steps_recomputed == 7


def test_a_drained_node_is_over_with_the_first_step_without_it() -> None:
    score = Score()
    score.step(7)
    score.tally.struck(DrillFault.DRAIN_NODE, 7, 2, 100.0)
    score.tell(NodeDraining, 101)
    score.step(8, 102)
    assert score.tally.open is not None
    score.tell(GangResized, 103)
    score.step(9, 104, world_size=2)
    assert score.result == FaultResult("drain-node", 7, 2, 1.0, 4.0, 0, 3, 2)


def test_a_slow_worker_is_over_when_it_is_named() -> None:
    score = Score()
    score.tally.struck(DrillFault.SLOW_RANK, 7, 2, 100.0)
    score.tell(WorkerSlow, 101, rank=1, slow=True)
    assert not score.tally.known
    score.tell(WorkerSlow, 102, rank=2, slow=True)
    score.step(8, 103)
    assert score.result == FaultResult("slow-rank", 7, 2, 2.0, 3.0, 0, 3, 3)


def test_what_a_worker_did_to_itself_opens_the_fault() -> None:
    score = Score()
    score.tell(FaultInjected, 100, fault="oom", step=8, rank=1)
    score.tell(RecoveryStarted, 101, detected_s=100.5)
    score.tell(RecoveryFinished, 102, steps_recomputed=0, world_size=3)
    assert score.result == FaultResult("oom", 7, 1, 0.5, 2.0, 0, 3, 3)


def test_a_network_is_looked_for_that_no_route_covers() -> None:
    assert str(free_network(["192.0.2.0/24", "127.0.0.1"])) == "10.213.0.0/24"
    assert str(free_network(["10.213.0.0/23", "10.213.2.7"])) == "10.213.3.0/24"
    with pytest.raises(UsageError, match=str(POOL)):
        free_network(["10.0.0.0/8"])


def test_where_there_is_no_checkpoint_nothing_is_damaged(tmp_path: Path) -> None:
    LocalStorage(tmp_path).put("step-00000001", "shard-00000.bin", [b"12345678"], 8)  # and no manifest
    assert corrupt_newest(str(tmp_path)) is False
    assert LocalStorage(tmp_path).read("step-00000001", "shard-00000.bin") == b"12345678"
