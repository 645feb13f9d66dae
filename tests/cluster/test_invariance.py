"""The loss curve does not depend on how many workers share the work, nor on how ZeRO shards the state."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from orchestrator.spec.job import JobSpec
from tests.cluster.train_processes import Outcome, TrainProcesses, train_plan
from tests.selection import every_day

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

STEPS = 30
LOSS_TOLERANCE = 1e-5
# The norm is a sum of squares over all parameters, dominated by the largest: it shakes more than the mean loss.
NORM_TOLERANCE = 1e-4


def assert_close(found: list[float], expected: list[float], tolerance: float, what: str) -> None:
    assert len(found) == len(expected)
    worst = max(range(len(found)), key=lambda i: abs(found[i] - expected[i]) / abs(expected[i]))
    gap = abs(found[worst] - expected[worst]) / abs(expected[worst])
    assert gap <= tolerance, f"{what} of step {worst + 1}: {found[worst]} against {expected[worst]}, {gap:.1e} apart"


@pytest.fixture(scope="module")
def reference(
    train_processes: TrainProcesses,
    make_spec: Callable[..., JobSpec],
    prepared_lines: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[int], Outcome]:
    """One worker at stage 0, by global batch."""
    made: dict[int, Outcome] = {}

    def get(global_batch: int) -> Outcome:
        if global_batch not in made:
            spec = make_spec(steps=STEPS, global_batch=global_batch, stage=0)
            plan = train_plan(spec, prepared_lines, tmp_path_factory.mktemp("reference"), 1)
            made[global_batch] = train_processes.run(plan, 1)
        return made[global_batch]

    return get


# Every number of workers and every stage with both batches; `make soak` has all pairs of them.
CASES = every_day(
    product([1, 2, 3, 4], [0, 1, 2, 3], [12, 10]),
    *[(1, 3, 12), (2, 1, 12), (3, 2, 12), (4, 0, 12)],
    *[(1, 1, 10), (2, 0, 10), (3, 3, 10), (4, 2, 10)],
)


@pytest.mark.parametrize(("workers", "stage", "global_batch"), CASES)
def test_losses_do_not_depend_on_workers_and_stage(
    workers: int,
    stage: int,
    global_batch: int,
    reference: Callable[[int], Outcome],
    train_processes: TrainProcesses,
    make_spec: Callable[..., JobSpec],
    prepared_lines: Path,
    tmp_path: Path,
) -> None:
    expected = reference(global_batch)
    spec = make_spec(steps=STEPS, global_batch=global_batch, stage=stage)
    found = train_processes.run(train_plan(spec, prepared_lines, tmp_path, workers), workers)

    assert [r.step for r in found.steps] == list(range(1, STEPS + 1))
    assert_close(found.losses, expected.losses, LOSS_TOLERANCE, "loss")
    assert_close(
        [n for n in found.grad_norms if n is not None],
        [n for n in expected.grad_norms if n is not None],
        NORM_TOLERANCE,
        "gradient norm",
    )
    assert found.evaluations.keys() == {0, STEPS}
    for step, loss in found.evaluations.items():
        assert loss == pytest.approx(expected.evaluations[step], rel=LOSS_TOLERANCE)
    # The same samples, whoever fed them, and padding among them.
    assert [r.data_digest for r in found.steps] == [r.data_digest for r in expected.steps]
    assert [r.target_tokens for r in found.steps] == [r.target_tokens for r in expected.steps]
    assert all(r.tokens < global_batch * 32 for r in found.steps)
    assert [r.samples for r in found.steps[0].ranks.every] == list(spec_shares(global_batch, workers))


def spec_shares(global_batch: int, workers: int) -> list[int]:
    base, extra = divmod(global_batch, workers)
    return [base + 1] * extra + [base] * (workers - extra)


def test_training_learns(reference: Callable[[int], Outcome]) -> None:
    """The curves above agree on something: the loss falls well below its start."""
    outcome = reference(12)
    assert outcome.losses[-1] < 0.9 * outcome.losses[0]
    assert outcome.evaluations[STEPS] < 0.9 * outcome.evaluations[0]


def test_masked_language_model_is_invariant(
    train_processes: TrainProcesses, make_spec: Callable[..., JobSpec], prepared_lines: Path, tmp_path: Path
) -> None:
    """BERT's masks are drawn per sample, so they are the same whoever draws them."""
    spec = make_spec("bert", steps=10, global_batch=10, stage=2)
    outcomes = [
        train_processes.run(train_plan(spec, prepared_lines, tmp_path / str(workers), workers), workers)
        for workers in (1, 3)
    ]
    assert outcomes[0].steps[0].target_tokens == outcomes[1].steps[0].target_tokens
    assert_close(outcomes[1].losses, outcomes[0].losses, LOSS_TOLERANCE, "loss")
