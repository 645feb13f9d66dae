"""What becomes of a run whose cluster's head does not answer."""

import socket
import threading
from dataclasses import dataclass, field

import pytest

from orchestrator.clusters.ray.reachability import listens
from orchestrator.domain.errors import ClusterError
from orchestrator.domain.events import EventBody, WarningIssued
from orchestrator.gang.health.head import END_S, PARK_S, TELL_S, Course, Head, course

pytestmark = pytest.mark.unit


@dataclass
class Watched:
    """What is known of the head, and what was told."""

    address: str = "127.0.0.1:1"
    silent_s: float = 0.0
    told: list[str] = field(default_factory=list)

    def head(self, resume_hint: str = "") -> Head:
        return Head(self.address, self, resume_hint, self._tell)

    def _tell(self, body: EventBody) -> None:
        assert isinstance(body, WarningIssued)
        self.told.append(body.message)


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("silent_s", "expected"),
    [
        (0.0, Course.CONTINUE),
        (TELL_S - 0.1, Course.CONTINUE),
        (TELL_S, Course.TELL),
        (PARK_S, Course.PARK),
        (END_S - 0.1, Course.PARK),
        (END_S, Course.END),
    ],
)
def test_the_course_depends_on_how_long_it_is_silent(silent_s: float, expected: Course) -> None:
    assert course(silent_s) is expected


def test_ray_ends_everything_after_a_minute_and_the_run_is_over_before() -> None:
    assert TELL_S < PARK_S < END_S < 60.0


def test_silence_and_its_end_are_told_once() -> None:
    watched = Watched()
    head = watched.head()
    for silent_s in (0.0, 1.0, TELL_S, TELL_S + 1.0):
        watched.silent_s = silent_s
        assert not head.round()
    assert len(watched.told) == 1
    assert "does not answer" in watched.told[0]
    assert watched.address in watched.told[0]
    watched.silent_s = 0.0
    assert not head.round()
    assert not head.round()
    assert [("answers again" in message) for message in watched.told] == [False, True]


def test_a_gang_leaves_before_ray_ends_it() -> None:
    watched = Watched(silent_s=PARK_S)
    head = watched.head()
    assert head.silent
    assert head.round()
    assert head.left_s == END_S - PARK_S
    assert not head.lost


def test_a_head_that_listens_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        watched = Watched(f"127.0.0.1:{server.getsockname()[1]}", silent_s=END_S + 1.0)
        assert listens(watched.address)
        watched.head().require(lambda: False)
    assert watched.told == []


def test_a_head_that_stays_away_ends_the_run_with_a_hint() -> None:
    watched = Watched(free_address(), silent_s=END_S)
    with pytest.raises(ClusterError, match=watched.address) as raised:
        watched.head("continue elsewhere").require(lambda: False)
    assert raised.value.hint == "continue elsewhere"


def test_a_head_that_comes_back_in_time_is_gone_on_with() -> None:
    watched = Watched(free_address(), silent_s=PARK_S)
    host, _, port = watched.address.rpartition(":")
    waiting = threading.Thread(target=watched.head().require, args=(lambda: False,))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    with socket.create_server((host, int(port))):
        waiting.join(5.0)
        assert not waiting.is_alive()


def test_who_stops_waits_no_longer() -> None:
    Watched(free_address(), silent_s=PARK_S).head().require(lambda: True)
