"""The ticker over a scripted world: clusters that go away, servers that restart, estimates and facts."""

import contextlib
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from orchestrator.control.policy.decide import decide
from orchestrator.control.policy.queue_facts import Decision, QueueFacts
from orchestrator.control.queue_board import QueueBoard
from orchestrator.control.queue_store import queue_store
from orchestrator.control.queue_store.reservation_table import read_reservations
from orchestrator.control.server_lease import ServerLease
from orchestrator.control.ticker import TICK_S, Ticker, TickerPorts
from orchestrator.domain.errors import ConvoyError
from orchestrator.domain.events import RunState
from orchestrator.domain.queue.queue_states import QueueState
from tests.unit.control.scripted import ANN, Server, active, endless, fifo, job

pytestmark = pytest.mark.unit


def test_without_a_cluster_nothing_is_decided_and_everybody_is_told(server: Server) -> None:
    run, waiting = active(server), server.submit(job("next"))
    server.world.answers = False
    server.decide = lambda facts: pytest.fail("decided without a cluster")
    server.second(30)
    assert (server.state(run), server.state(waiting)) == (QueueState.ACTIVE, QueueState.QUEUED)
    waits = server.queue.run(waiting, ANN).waits
    assert waits is not None
    assert "the cluster does not answer" in waits.message
    assert server.queue.server().cluster is None


def test_after_a_restart_of_the_head_runs_resume_and_no_budget_is_used(server: Server) -> None:
    run = server.submit(job(more="schedule: {retries: 0}\n"))
    server.until(run, QueueState.STARTING)
    endless(server, run)
    server.until(run, QueueState.ACTIVE)
    server.world.answers = False
    server.second(3)
    server.world.end(run, RunState.FAILED, 1, "the cluster is gone")
    row = server.until(run, QueueState.SUSPENDED)
    assert (row.failures, row.step > 0) == (0, True)
    server.world.answers, server.world.nodes_up = True, {"new-a": 4.0, "new-b": 4.0}
    server.until(run, QueueState.ACTIVE)
    assert set(server.row(run).booked) <= {"new-a", "new-b"}


def test_a_driver_that_says_that_its_cluster_was_lost_is_believed(server: Server) -> None:
    run = server.submit(job(more="schedule: {retries: 0}\n"))
    server.until(run, QueueState.ACTIVE)
    server.world.drivers[run].cluster_lost = True
    server.world.end(run, RunState.FAILED, 1, "the head is gone")
    assert server.until(run, QueueState.SUSPENDED).failures == 0


def test_a_head_that_restarts_between_two_ticks_is_noticed_by_its_nodes(server: Server) -> None:
    run = active(server)
    server.world.nodes_up = {"new-a": 4.0}
    server.world.end(run, RunState.FAILED, 1, "the cluster is gone")
    server.until(run, QueueState.SUSPENDED)
    server.until(run, QueueState.ACTIVE)


def test_work_is_estimated_from_measured_steps_and_from_earlier_runs_of_the_shape(server: Server) -> None:
    seen: dict[str, float | None] = {}

    def noted(facts: QueueFacts) -> Decision:
        seen.update({run.id: run.work_s for run in facts.runs})
        return fifo(facts)

    server.decide = noted
    run = server.submit(job(workers="2"))
    server.second()
    assert seen[run] is None
    server.second(2)
    assert seen[run] == pytest.approx((10 - 1) * 2.0 * 2, abs=4.1), "steps left, 2 s each, 2 workers"
    endless(server, run)
    server.second(35)
    again = server.submit(job("same-shape", steps=50).model_copy(update={"overrides": ["train.lr=0.5"]}))
    other = server.submit(job("other-shape").model_copy(update={"overrides": ["data.sequence_length=32"]}))
    server.second()
    assert seen[again] == 50 * 2.0 * 2
    assert seen[other] is None
    server.crash()
    server.boot()
    third = server.submit(job("after-restart", steps=50))
    server.second()
    assert seen[third] == 50 * 2.0 * 2, "the table is in the database"


def test_free_capacity_is_without_what_others_use(server: Server) -> None:
    facts: list[QueueFacts] = []
    server.decide = lambda each: (facts.append(each), fifo(each))[1]
    run = active(server, workers="3")
    server.world.held_now["stranger"] = {"b": 1}
    server.second()
    free = {node.node_id: node.free["CPU"] for node in facts[-1].nodes}
    assert free == {"a": 4.0, "b": 3.0}, "its own runs are in `places`"
    assert {each.id: each.places for each in facts[-1].runs} == {run: {"a": 3}}


def test_a_server_that_restarts_disturbs_nothing(server: Server) -> None:
    run, waiting = active(server, workers="6"), server.submit(job("next", workers="4"))
    server.crash()
    for _ in range(5):
        server.world.advance()
    server.boot()
    server.second(5)
    assert (server.state(run), server.state(waiting)) == (QueueState.ACTIVE, QueueState.QUEUED)
    assert server.world.launches == [run]
    assert server.world.drivers[run].grant.number == server.row(run).grant_number
    server.world.end(run, RunState.SUCCEEDED, 0)
    server.until(waiting, QueueState.ACTIVE)


def test_a_run_that_ended_while_the_server_was_away_is_accounted_for(server: Server) -> None:
    run = server.submit(job())
    server.second(3)
    server.crash()
    for _ in range(20):
        server.world.advance()
    server.boot()
    server.until(run, QueueState.SUCCEEDED)
    assert server.world.launches == [run]


def test_a_directory_that_a_crash_of_the_machine_has_taken_is_made_again(server: Server) -> None:
    run = server.submit(job())
    shutil.rmtree(server.row(run).directory)
    server.second(2)
    server.until(run, QueueState.ACTIVE)
    assert server.world.launches == [run]


def test_of_two_servers_the_one_without_the_lease_does_nothing(server: Server) -> None:
    other_lease = ServerLease(server.store, server.time.clock, 1.0, False)
    board = QueueBoard()
    ports = TickerPorts(server.world, server.world, fifo, server.time.clock, server.time.now)
    other = Ticker(server.store, other_lease, server.runs, ports, board)
    run = server.submit(job())
    for _ in range(10):
        other_lease.turn()
        server.lease.turn()
        assert not other.tick()
        server.time.pass_s(0.2)
    assert server.world.launches == []
    assert board.view is not None
    assert not board.view.acting
    while other_lease.token is None:
        other_lease.turn()
        server.time.pass_s(0.2)
    server.ticker.tick()
    assert server.world.launches == [], "the one that has lost the lease does nothing either"
    other.tick()
    assert server.world.launches == [run]


def test_a_request_of_a_person_during_a_tick_wins(server: Server) -> None:
    run = server.submit(job())

    def interrupted(facts: QueueFacts) -> Decision:
        decision = fifo(facts)
        server.queue.pause(run, ANN)
        return decision

    server.decide = interrupted
    server.ticker.tick()
    assert server.state(run) is QueueState.PAUSED
    assert server.world.launches == []


def test_ten_launches_of_one_tick_are_a_few_at_once(server: Server) -> None:
    server.world.nodes_up = {"a": 100.0}
    runs = [server.submit(job(f"n{number}")) for number in range(40)]
    server.second()
    assert len(server.world.launches) == 16
    server.second(4)
    assert sorted(server.world.launches) == sorted(runs)


def test_it_ticks_by_itself_and_at_once_when_it_is_woken(server: Server) -> None:
    server.lease = ServerLease(server.store, ttl_s=0.0)
    ports = TickerPorts(server.world, server.world, fifo)
    ticker = Ticker(server.store, server.lease, server.runs, ports, server.board)
    ticker.start()
    try:
        deadline_s = time.monotonic() + 20
        while not (server.board.view and server.board.view.acting) and time.monotonic() < deadline_s:
            time.sleep(0.005)
        began_s = time.monotonic()
        run = server.submit(job())
        ticker.wake()
        while not server.world.launches and time.monotonic() < deadline_s:
            time.sleep(0.002)
        assert server.world.launches == [run]
        assert time.monotonic() - began_s < TICK_S, "it was not waited for the next tick"
    finally:
        ticker.close()
        server.lease.close()
    assert not server.world.killed


def test_a_locked_database_is_said_to_those_who_wait_and_the_ticker_continues(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_store, "LOCK_WAIT_S", 0.02)
    server.crash()
    server.boot()
    run = server.submit(job())
    with contextlib.closing(sqlite3.connect(server.store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert not server.ticker.tick()
        waits = server.queue.run(run, ANN).waits
        assert waits is not None
        assert "another process has locked the queue's database" in waits.message
        assert server.world.launches == [], "what is not booked is not done"
        other.execute("ROLLBACK")
    server.until(run, QueueState.ACTIVE)


def test_a_lost_effect_is_repeated(server: Server) -> None:
    run = active(server)
    real, sent = server.world.stop, []

    def failing(run_id: str, directory: Path) -> None:
        sent.append(run_id)
        if len(sent) < 3:
            raise ConvoyError("the driver does not answer")
        real(run_id, directory)

    server.world.stop = failing  # type: ignore[method-assign]
    server.queue.cancel(run, ANN)
    server.until(run, QueueState.CANCELLED)
    assert sent == [run] * 3


def test_what_a_waiting_run_is_promised_is_kept_also_by_the_next_server(server: Server) -> None:
    facts: list[QueueFacts] = []
    server.decide = lambda each: (facts.append(each), decide(each))[1]
    first = active(server, workers="6")
    wide = server.submit(job("wide", workers="8"))
    server.second(4)
    promised = [run.reserved for run in facts[-1].runs if run.id == wide]
    assert promised[0] is not None
    assert sum(promised[0][1].values()) == 8
    assert server.row(first).granted_s == pytest.approx(server.time.now(), abs=30), "when its grant changed"
    assert [run.changed_s for run in facts[-1].runs if run.id == first] == [server.row(first).granted_s]
    server.crash()
    facts.clear()
    server.boot()
    server.second()
    assert [run.reserved for run in facts[0].runs if run.id == wide] == promised
    server.queue.cancel(wide, ANN)
    server.second(2)
    assert server.store.read(read_reservations) == {}
