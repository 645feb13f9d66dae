"""Leases in a directory: of several processes one creates a token, renewals need no space, damage takes nothing
away."""

import json
import multiprocessing
from pathlib import Path

import pytest

from orchestrator.checkpoint.storage.storage import LocalStorage
from orchestrator.domain.lease import Lease
from orchestrator.store.driver_process import DriverProcess
from orchestrator.store.lease.lease_places import ENTRY_BYTES, LeaseBucket, LeaseDirectory, LeaseEntry, LeasePlace

pytestmark = pytest.mark.unit

CHALLENGERS, ROUNDS = 3, 40


def entry(token: int = 1, renewals: int = 0, holder: str = "me") -> LeaseEntry:
    return LeaseEntry(Lease(holder, token, renewals), DriverProcess.current())


@pytest.fixture(params=["directory", "storage"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> LeasePlace:
    return LeaseDirectory(tmp_path) if request.param == "directory" else LeaseBucket(LocalStorage(tmp_path))


def test_a_token_is_created_once_and_renewed_by_its_holder(place: LeasePlace) -> None:
    assert (place.highest(), place.read(1)) == (0, None)
    assert place.create(entry(1))
    assert not place.create(entry(1, holder="you"))
    place.write(entry(1, renewals=5))
    assert place.create(entry(2, holder="you"))
    assert place.highest() == 2
    first, second = place.read(1), place.read(2)
    assert first == entry(1, renewals=5)
    assert second is not None
    assert second.lease.holder == "you"
    assert second.driver == DriverProcess.current()


def test_a_renewal_overwrites_in_place_and_a_damaged_entry_is_none(tmp_path: Path) -> None:
    place = LeaseDirectory(tmp_path)
    place.create(entry(1))
    (path,) = (tmp_path / "leases").iterdir()
    before = path.stat()
    place.write(entry(1, renewals=10**9))
    after = path.stat()
    # No new file and no new block: a full disk costs nobody the lease.
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size) == (before.st_ino, ENTRY_BYTES)
    for damage in (b"", b"{", b"[]", b'{"holder": 3}'):
        path.write_bytes(damage)
        assert place.read(1) is None
        assert place.highest() == 1


def test_other_files_are_no_leases(tmp_path: Path) -> None:
    place = LeaseDirectory(tmp_path)
    place.create(entry(3))
    for name in (".00000009.json.1a2b", "00000009.json.tmp", "9.json", "notes"):
        (tmp_path / "leases" / name).write_text("{}")
    assert place.highest() == 3


def _challenge(root: Path, start: "multiprocessing.synchronize.Barrier", number: int) -> None:
    place, won = LeaseDirectory(root), []
    for token in range(1, ROUNDS + 1):
        start.wait(30)
        if place.create(entry(token, holder=str(number))):
            won.append(token)
    (root / f"won-{number}.json").write_text(json.dumps(won))


def test_of_several_processes_one_gets_each_token(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(CHALLENGERS)
    processes = [context.Process(target=_challenge, args=(tmp_path, start, n)) for n in range(CHALLENGERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    won = [json.loads((tmp_path / f"won-{number}.json").read_text()) for number in range(CHALLENGERS)]
    assert sorted(token for each in won for token in each) == list(range(1, ROUNDS + 1))
    place = LeaseDirectory(tmp_path)
    for number, tokens in enumerate(won):
        for token in tokens:
            found = place.read(token)
            assert found is not None
            assert found.lease.holder == str(number)
    assert not [path for path in (tmp_path / "leases").iterdir() if path.name.startswith(".")]
