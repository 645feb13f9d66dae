"""The lease that this process holds: renewed, given back, and lost."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.domain.errors import LeaseLostError
from orchestrator.store.lease import run_lease
from orchestrator.store.lease.lease_challenge import Opening, take
from orchestrator.store.lease.lease_places import LeaseDirectory, LeaseEntry
from orchestrator.store.lease.run_lease import RunLease

pytestmark = pytest.mark.unit


class QuickDirectory(LeaseDirectory):
    """Renewed every few milliseconds."""

    renew_s = 0.01


class BrokenDirectory(QuickDirectory):
    """A place that stops answering."""

    broken = False

    def highest(self) -> int:
        if self.broken:
            raise OSError("no answer")
        return super().highest()


class Losses(list[LeaseLostError]):
    def __call__(self, error: LeaseLostError) -> None:
        self.append(error)


@pytest.fixture
def losses() -> Losses:
    return Losses()


@pytest.fixture
def lease(tmp_path: Path, losses: Losses) -> Iterator[RunLease]:
    made = RunLease("a-run", [QuickDirectory(tmp_path)], Opening(0), losses)
    yield made
    made.close()


def entry(root: Path, token: int = 1) -> LeaseEntry:
    found = LeaseDirectory(root).read(token)
    assert found is not None
    return found


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5.0
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_lease_is_renewed_until_it_is_given_back(tmp_path: Path, lease: RunLease, losses: Losses) -> None:
    assert (lease.token, lease.held()) == (1, True)
    eventually(lambda: entry(tmp_path).lease.renewals > 3)
    lease.close()
    assert entry(tmp_path).lease.released
    renewals = entry(tmp_path).lease.renewals
    time.sleep(0.05)
    assert entry(tmp_path).lease.renewals == renewals
    assert losses == []


def test_a_driver_that_was_taken_over_learns_it_once_and_gives_nothing_back(
    tmp_path: Path, lease: RunLease, losses: Losses
) -> None:
    take([LeaseDirectory(tmp_path)], Opening(1), "another", "a-run")
    eventually(lambda: bool(losses))
    time.sleep(0.05)
    (error,) = losses
    assert "lease 2; this driver had lease 1" in error.message
    assert not lease.held()
    assert lease.lost is error
    lease.close()
    assert not entry(tmp_path).lease.released


def test_a_driver_that_was_stopped_looks_before_it_writes(
    tmp_path: Path, losses: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread may run later than that of a writer: who has not renewed for long asks first."""
    monkeypatch.setattr(run_lease, "STALE_S", 0.0)
    lease = RunLease("a-run", [LeaseDirectory(tmp_path)], Opening(0), losses)  # renews in two seconds
    assert lease.held()
    take([LeaseDirectory(tmp_path)], Opening(1), "another", "a-run")
    assert not lease.held()
    assert len(losses) == 1
    lease.close()


def test_a_place_that_does_not_answer_takes_nothing_away(
    tmp_path: Path, losses: Losses, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_lease, "STALE_S", 0.0)
    place = BrokenDirectory(tmp_path)
    lease = RunLease("a-run", [place], Opening(0), losses)
    place.broken = True
    assert lease.held()
    eventually(lambda: "no answer" in capsys.readouterr().err)
    assert losses == []
    place.broken = False
    before = entry(tmp_path).lease.renewals
    eventually(lambda: entry(tmp_path).lease.renewals > before)
    lease.close()
    assert entry(tmp_path).lease.released


def test_a_second_place_gets_the_lease_in_the_background(tmp_path: Path, lease: RunLease, losses: Losses) -> None:
    (tmp_path / "far").mkdir()
    lease.extend(QuickDirectory(tmp_path / "far"))
    eventually(lambda: LeaseDirectory(tmp_path / "far").highest() == 1)
    lease.close()
    assert entry(tmp_path / "far").lease.released
    assert losses == []
