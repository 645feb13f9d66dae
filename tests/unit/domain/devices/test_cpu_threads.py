import pytest

from orchestrator.domain.devices.cpu_threads import compute_threads, offload_threads, thread_environment

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("cpus", "driver", "computing", "offloading"),
    [
        (1, {}, 1, 12),
        (0.5, {}, 1, 12),
        (4, {}, 4, 12),
        (16, {}, 16, 16),
        (1, {"OMP_NUM_THREADS": "1"}, 1, 1),
        (4, {"OMP_NUM_THREADS": "3"}, 3, 3),
        (2, {"OMP_NUM_THREADS": ""}, 2, 12),
    ],
)
def test_what_the_user_chose_or_a_share_of_the_host(
    cpus: float, driver: dict[str, str], computing: int, offloading: int
) -> None:
    """Eight workers on a host of 96 cores."""
    environment = thread_environment(cpus, driver)
    assert compute_threads(cpus, environment) == computing
    assert offload_threads(cpus, environment, 96, 8) == offloading


def test_without_a_driver() -> None:
    """Started by hand, or by torchrun."""
    assert compute_threads(2, {}) == 2
    assert offload_threads(1, {}, 96, 8) == 12
    assert offload_threads(1, {"OMP_NUM_THREADS": "5"}, 96, 8) == 5


def test_more_workers_than_cores() -> None:
    assert offload_threads(1, {}, 2, 8) == 1
