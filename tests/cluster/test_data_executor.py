"""`LocalExecutor` with real processes."""

import os
import time
from collections.abc import Iterator

import psutil
import pytest

from orchestrator.data.executor import LocalExecutor
from orchestrator.domain.errors import DataError
from tests.cluster.gang_runs import command_of

pytestmark = pytest.mark.cluster


def slow_square(value: int) -> tuple[int, int]:
    time.sleep(0.02 if value % 3 == 0 else 0.0)
    return value * value, os.getpid()


def fail_at_seven(value: int) -> int:
    if value == 7:
        raise ValueError("seven")
    return value


def die_at_seven(value: int) -> int:
    if value == 7:
        os._exit(9)
    return value


def sleep(value: int) -> int:
    time.sleep(60)
    return value


def children() -> set[psutil.Process]:
    """Processes below this one, but for multiprocessing's own keeper of resources."""
    return {p for p in psutil.Process().children(recursive=True) if "resource_tracker" not in command_of(p)}


@pytest.fixture
def others() -> set[psutil.Process]:
    """What other tests of this process still keep, such as a fork server."""
    return children()


def test_results_come_in_order_from_other_processes(others: set[psutil.Process]) -> None:
    with LocalExecutor(2) as executor:
        found = list(executor.map(slow_square, range(40)))
    assert [value for value, _ in found] == [i * i for i in range(40)]
    assert os.getpid() not in {pid for _, pid in found}
    assert not children() - others


def test_only_so_many_items_are_taken_ahead() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for value in range(50):
            taken += 1
            yield value

    for done, _ in enumerate(LocalExecutor(2).map(slow_square, items(), in_flight=3)):
        assert taken <= done + 3


def test_an_exception_arrives_at_its_item_and_ends_the_pool(others: set[psutil.Process]) -> None:
    found: list[int] = []
    with pytest.raises(ValueError, match="seven"):
        found.extend(LocalExecutor(2).map(fail_at_seven, range(100)))
    assert found == list(range(7))
    assert not children() - others


def test_a_process_that_dies_is_an_error_not_a_hang(others: set[psutil.Process]) -> None:
    with pytest.raises(DataError, match="died without an error"):
        list(LocalExecutor(2).map(die_at_seven, range(100)))
    assert not children() - others


def test_an_iterator_that_is_left_stops_running_tasks_at_once(others: set[psutil.Process]) -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(LocalExecutor(2).map(sleep, items()))
    assert time.monotonic() - started < 10
    assert not children() - others


def test_without_workers_it_is_this_process() -> None:
    assert {pid for _, pid in LocalExecutor(0).map(slow_square, range(4))} == {os.getpid()}
    with pytest.raises(ValueError, match="negative"):
        LocalExecutor(-1)
