"""What makes training fast changes no numbers, and the host waits for the device no more often than it has to."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from orchestrator.spec.job import JobSpec
from tests.cluster.host_waits import CountingSession, WaitsFound
from tests.cluster.train_processes import FileSession, Outcome, TrainProcesses, train_plan
from tests.selection import every_day

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

STAGES = [0, 1, 2, 3]
Train = Callable[..., Outcome]


@pytest.fixture
def train(
    train_processes: TrainProcesses, make_spec: Callable[..., JobSpec], prepared_lines: Path, tmp_path: Path
) -> Train:
    """Train a spec made from the arguments; `workers` of them."""
    runs = 0

    def run(workers: int = 2, session: type[FileSession] = FileSession, **arguments: Any) -> Outcome:
        nonlocal runs
        runs += 1
        plan = train_plan(make_spec(**arguments), prepared_lines, tmp_path / str(runs), workers)
        return train_processes.run(plan, workers, session=session)

    return run


CHUNKED = every_day(
    product(["gpt2", "llama", "bert"], STAGES, ["fp32", "bf16"]),
    ("gpt2", 0, "fp32"),
    ("llama", 3, "bf16"),
)


@pytest.mark.parametrize(("architecture", "stage", "precision"), CHUNKED)
def test_a_loss_in_chunks_changes_nothing(architecture: str, stage: int, precision: str, train: Train) -> None:
    """With tied embeddings (gpt2, bert), a bias (bert), neither (llama); at stage 3 the head's weight is there in its
    module's call only. Some micro batches have rows without targets."""
    arguments: dict[str, Any] = {"architecture": architecture, "stage": stage, "precision": precision, "steps": 6}
    plain = train(**arguments, loss_chunk_tokens="off")
    chunked = train(**arguments, loss_chunk_tokens=20)
    tolerance = 1e-6 if precision == "fp32" else 2e-3
    assert chunked.losses == pytest.approx(plain.losses, rel=tolerance)
    assert chunked.losses != plain.losses or chunked.grad_norms != plain.grad_norms
    assert chunked.grad_norms == pytest.approx(plain.grad_norms, rel=10 * tolerance)
    assert chunked.evaluations == pytest.approx(plain.evaluations, rel=tolerance)


WAITS = every_day(product(STAGES, ["fp32", "bf16"]), (1, "bf16"), (3, "bf16"))


def waits_of(outcome: Outcome) -> dict[int, list[str]]:
    """What was found, by step."""
    (waits,) = [fields["waits"] for kind, fields in outcome.events if kind is WaitsFound]
    return {int(step): found for step, found in waits.items()}


@pytest.mark.parametrize(("stage", "precision"), WAITS)
def test_the_host_waits_twice_a_step(stage: int, precision: str, train: Train) -> None:
    """For the loss and the norm, and for what the ranks exchange; the first step also for the number of targets."""
    outcome = train(stage=stage, precision=precision, steps=5, micro_batch=2, session=CountingSession)
    waits = waits_of(outcome)
    assert sorted(waits) == [1, 2, 3, 4, 5]
    assert len(waits[1]) == 4, waits[1]
    for step in range(3, 6):
        assert [wait.partition(":")[0] for wait in waits[step]] == ["exchange.py"] * 2, waits[step]
    # The second step of a gang also gathers what each rank holds in memory.
    assert {wait.partition(":")[0] for wait in waits[2]} == {"exchange.py"}
    alone = train(workers=1, stage=stage, precision=precision, steps=4, session=CountingSession)
    waits = waits_of(alone)
    assert [len(waits[step]) for step in (1, 3, 4)] == [1, 1, 1], waits


def test_deterministic_kernels_are_enough(train: Train) -> None:
    """No operation of a step lacks one, on CPUs; and losses do not change."""
    arguments: dict[str, Any] = {"stage": 2, "steps": 3, "loss_chunk_tokens": 20}
    assert train(**arguments, deterministic=True).losses == train(**arguments).losses


@pytest.mark.soak
@pytest.mark.needs("compiler")
@pytest.mark.parametrize(("stage", "checkpointing"), [(0, False), (1, True), (2, False)])
def test_compiled_blocks_change_nothing(stage: int, checkpointing: bool, train: Train) -> None:
    arguments: dict[str, Any] = {"stage": stage, "steps": 4, "activation_checkpointing": checkpointing}
    eager = train(**arguments)
    compiled = train(**arguments, compile="blocks")
    assert compiled.losses == pytest.approx(eager.losses, rel=1e-5)
    assert compiled.losses != eager.losses or compiled.grad_norms != eager.grad_norms
