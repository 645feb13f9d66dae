"""Who may drive a run: challengers on a clock that the tests move, drivers of this host, of others, and of none."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.atomic_files import read_json, write_json
from orchestrator.domain.errors import UsageError
from orchestrator.domain.events import RunState
from orchestrator.domain.lease import LOOK_S, TTL_S, Lease
from orchestrator.domain.run_layout import RunLayout
from orchestrator.store.driver_process import DriverProcess
from orchestrator.store.lease.lease_challenge import Challenge, Opening, take
from orchestrator.store.lease.lease_places import LeaseDirectory, LeaseEntry, LeasePlace
from orchestrator.store.run_store import RunStore

pytestmark = pytest.mark.unit

ELSEWHERE = DriverProcess(pid=7, host="pod-1", boot_id="another machine's", start_ticks=5, pid_namespace="pid:[1]")


class Scene:
    """A run that a driver holds, and a challenger whose clock moves when it waits."""

    def __init__(self, root: Path, driver: DriverProcess | None = ELSEWHERE, token: int = 1) -> None:
        self.store = RunStore(root)
        self.layout: RunLayout = self.store.create("tiny")
        self.store.claim(self.layout, token)
        self.store.set_state(self.layout, RunState.RUNNING)
        self.places: list[LeasePlace] = [LeaseDirectory(self.layout.root)]
        self.lease = Lease("the driver before", token)
        self.driver = driver
        for place in self.places:
            assert place.create(self.entry)
        self.now_s, self.told, self.meanwhile = 1000.0, list[str](), self.nothing

    @property
    def entry(self) -> LeaseEntry:
        return LeaseEntry(self.lease, self.driver)

    def nothing(self) -> None:
        """The holder does not renew."""

    def renew(self) -> None:
        self.lease = replace(self.lease, renewals=self.lease.renewals + 1)
        for place in self.places:
            place.write(self.entry)

    def settle(self, take_over: bool = False) -> Opening:
        return Challenge(self.layout, self.places, lambda: self.now_s, self._wait).settle(take_over, self.told.append)

    def waited_s(self) -> float:
        return self.now_s - 1000.0

    def _wait(self, seconds: float) -> bool:
        self.now_s += seconds
        self.meanwhile()
        return False


def refusal(settle: Callable[[], Opening]) -> UsageError:
    with pytest.raises(UsageError) as raised:
        settle()
    return raised.value


def test_a_driver_of_another_host_that_is_gone_is_taken_over_after_the_ttl(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    assert scene.settle() == Opening(1)
    assert TTL_S <= scene.waited_s() <= TTL_S + 2 * LOOK_S
    (told,) = scene.told
    assert "process 7 on pod-1" in told
    assert "--take-over" in told


def test_a_driver_that_renews_is_left_alone(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.meanwhile = scene.renew
    error = refusal(scene.settle)
    assert "is running" in error.message
    assert "process 7 on pod-1" in error.message
    assert scene.waited_s() <= 2 * LOOK_S, "whoever lives shows it soon"


def test_the_user_may_know_better(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    assert scene.settle(take_over=True) == Opening(1)
    assert scene.waited_s() == 0.0


def test_a_driver_of_this_host_that_is_certainly_gone_is_not_waited_for(tmp_path: Path) -> None:
    for gone in (replace(DriverProcess.current(), start_ticks=1), replace(DriverProcess.current(), pid=2**22 + 1)):
        scene = Scene(tmp_path, driver=gone)
        assert scene.settle() == Opening(1)
        assert scene.waited_s() == 0.0


def test_the_same_host_name_on_another_machine_is_another_machine(tmp_path: Path) -> None:
    """A container with a fixed host name: its processes are not seen here, alive or not."""
    here = DriverProcess.current()
    for foreign in (replace(here, boot_id="another machine's"), replace(here, pid_namespace="pid:[1]", pid=2**22 + 1)):
        assert foreign.host == here.host
        assert foreign.alive() is None
        scene = Scene(tmp_path, driver=foreign)
        scene.meanwhile = scene.renew
        refusal(scene.settle)
        scene = Scene(tmp_path, driver=foreign)
        scene.settle()
        assert scene.waited_s() >= TTL_S


def test_a_pod_under_another_name_on_the_same_machine_is_seen(tmp_path: Path) -> None:
    renamed = replace(DriverProcess.current(), host="another-name", start_ticks=1)
    assert renamed.alive() is False
    Scene(tmp_path, driver=renamed).settle()


def test_this_process_does_not_take_a_run_from_itself(tmp_path: Path) -> None:
    scene = Scene(tmp_path, driver=DriverProcess.current())
    assert "this very process" in refusal(scene.settle).message


def test_a_lease_that_was_given_back_and_a_run_that_has_ended_are_free(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.lease = replace(scene.lease, released=True)
    scene.places[0].write(scene.entry)
    assert scene.settle() == Opening(1)
    ended = Scene(tmp_path)
    ended.store.set_state(ended.layout, RunState.FAILED, "no node")
    assert ended.settle() == Opening(1)
    assert scene.waited_s() == ended.waited_s() == 0.0


def test_a_final_state_of_an_earlier_driver_frees_nothing(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.store.set_state(scene.layout, RunState.STOPPED, "of lease 1")
    scene.lease = replace(scene.lease, token=2)
    assert scene.places[0].create(scene.entry)
    scene.meanwhile = scene.renew
    refusal(scene.settle)


def test_another_challenger_that_is_faster_wins(tmp_path: Path) -> None:
    scene = Scene(tmp_path)

    def another_takes_it() -> None:
        if scene.waited_s() >= 5.0:
            take(scene.places, Opening(1), "faster", scene.layout.run_id)
            scene.meanwhile = scene.nothing

    scene.meanwhile = another_takes_it
    assert "another driver has just taken it" in refusal(scene.settle).message
    with pytest.raises(UsageError, match="just been taken over"):
        take(scene.places, Opening(1), "slower", scene.layout.run_id)
    assert scene.places[0].highest() == 2


def test_two_places_one_of_which_is_elsewhere(tmp_path: Path) -> None:
    """The directory of this host knows an old lease, the bucket a newer one of another machine."""
    scene = Scene(tmp_path, driver=replace(DriverProcess.current(), start_ticks=1))
    bucket = LeaseDirectory(tmp_path)
    newer = LeaseEntry(Lease("on another machine", 2), ELSEWHERE)
    assert bucket.create(newer)
    scene.places = [bucket, *scene.places]
    scene.meanwhile = lambda: bucket.write(replace(newer, lease=replace(newer.lease, renewals=int(scene.now_s * 10))))
    refusal(scene.settle)
    scene.meanwhile = scene.nothing
    assert scene.settle() == Opening(2)
    assert [place.highest() for place in scene.places] == [2, 1]
    entry = take(scene.places, Opening(2), "here", scene.layout.run_id)
    assert entry.lease.token == 3
    assert [place.highest() for place in scene.places] == [3, 3]


def test_who_loses_the_second_place_gives_the_first_one_back(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    first = LeaseDirectory(tmp_path)
    scene.lease = replace(scene.lease, token=2)
    scene.places[0].create(scene.entry)
    with pytest.raises(UsageError):
        take([first, *scene.places], Opening(1), "slower", scene.layout.run_id)
    found = first.read(2)
    assert found is not None
    assert found.lease.released


def test_an_entry_that_cannot_be_read_is_waited_for(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    (path,) = (scene.layout.root / "leases").iterdir()
    path.write_bytes(b"")
    scene.settle()
    assert scene.waited_s() >= TTL_S


def test_a_stop_ends_the_wait(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    challenge = Challenge(scene.layout, scene.places, lambda: scene.now_s, lambda seconds: True)
    with pytest.raises(KeyboardInterrupt):
        challenge.settle(False, scene.told.append)


def test_runs_of_versions_without_leases(tmp_path: Path) -> None:
    """Nobody renews anything there: who cannot be seen must be given up by the user."""

    def written(driver: DriverProcess, state: str = "running") -> Challenge:
        layout = RunStore(tmp_path).create("tiny")
        value = {key: field for key, field in (read_json(layout.state) or {}).items() if key != "lease"}
        old = {key: field for key, field in driver.to_json().items() if key != "pid_namespace"}
        write_json(layout.state, {**value, "state": state, "driver": old})
        return Challenge(layout, [LeaseDirectory(layout.root)])

    here = DriverProcess.current()
    assert written(replace(here, start_ticks=1)).settle(False, print) == Opening(0)
    assert written(ELSEWHERE, "stopped").settle(False, print) == Opening(0)
    error = refusal(lambda: written(ELSEWHERE).settle(False, print))
    assert "--take-over" in (error.hint or "")
    assert written(ELSEWHERE).settle(True, print) == Opening(0)
