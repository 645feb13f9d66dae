import pytest

from orchestrator.spec.train import TrainSpec
from orchestrator.train.lr_schedule import learning_rate

pytestmark = pytest.mark.unit


def train(**fields: object) -> TrainSpec:
    return TrainSpec(steps=100, global_batch=1, lr=1e-2, **fields)  # type: ignore[arg-type]


def test_warm_up_is_linear_and_reaches_the_peak() -> None:
    spec = train(warmup_steps=10)
    assert [learning_rate(spec, 100, step) for step in (1, 5, 10)] == pytest.approx([1e-3, 5e-3, 1e-2])


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_decay_ends_at_the_minimum(schedule: str) -> None:
    spec = train(warmup_steps=10, schedule=schedule, min_lr_ratio=0.2)
    rates = [learning_rate(spec, 100, step) for step in range(10, 101)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(1e-2)
    assert rates[45] == pytest.approx(0.6e-2)  # halfway between 1 and 0.2, for both shapes
    assert rates[-1] == pytest.approx(0.2e-2)


def test_constant_stays() -> None:
    spec = train(schedule="constant", warmup_steps=3)
    assert {learning_rate(spec, 100, step) for step in range(3, 101)} == {1e-2}


def test_past_the_end_the_last_rate_stays() -> None:
    spec = train()
    assert learning_rate(spec, 100, 250) == learning_rate(spec, 100, 100)


def test_warm_up_longer_than_the_run() -> None:
    assert learning_rate(train(warmup_steps=200), 100, 100) == pytest.approx(0.5e-2)


def test_steps_start_at_one() -> None:
    with pytest.raises(ValueError, match="counted from 1"):
        learning_rate(train(), 100, 0)
