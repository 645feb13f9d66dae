"""The ticker over a scripted world: what becomes of runs when drivers, nodes and clocks misbehave."""

import pytest

from orchestrator.control.policy.queue_facts import Decision, QueueFacts
from orchestrator.control.ticking.driver_effects import STOP_LIMIT_S
from orchestrator.control.ticking.retry_policy import FIRST_PAUSE_S
from orchestrator.domain.errors import ConvoyError, UsageError
from orchestrator.domain.events import RunState
from orchestrator.domain.lease import TTL_S
from orchestrator.domain.queue.queue_states import QueueState
from tests.unit.control.scripted import ANN, Server, active, endless, fifo, job

pytestmark = pytest.mark.unit


def kinds(server: Server, run: str) -> list[str]:
    return [event.kind for event in server.queue.events(run, 0, 1000, ANN)]


def test_a_run_goes_from_the_queue_to_its_last_step(server: Server) -> None:
    run = server.submit(job(workers="3"))
    server.second()
    assert server.world.launches == [run]
    assert server.row(run).booked == {"a": 3}
    server.second(3)
    view = server.queue.run(run, ANN)
    assert (view.state, view.run_state, view.workers) == (QueueState.ACTIVE, RunState.RUNNING, 3)
    assert view.eta_s == 2.0 * (10 - view.step)
    row = server.until(run, QueueState.SUCCEEDED)
    server.second(2)
    assert (row.step, row.total_steps, row.loss) == (10, 10, 1.0)
    assert server.row(run).settled
    assert server.row(run).booked == {}
    assert kinds(server, run) == ["submitted", "granted", "launched", "state", "state", "released", "settled"]
    assert server.world.launches == [run]


def test_capacity_is_booked_until_the_cluster_shows_no_reservation(server: Server) -> None:
    run = active(server, workers="8")
    waiting = server.submit(job("next"))
    server.world.keeps_places = True
    server.world.end(run, RunState.SUCCEEDED, 0)
    server.second(5)
    assert (server.state(run), server.row(run).booked) == (QueueState.SUCCEEDED, {"a": 4, "b": 4})
    assert server.state(waiting) is QueueState.QUEUED
    del server.world.held_now[run]
    server.until(waiting, QueueState.ACTIVE)


def test_a_vanished_driver_is_replaced_and_the_new_one_resumes(server: Server) -> None:
    run = active(server)
    step = server.world.drivers[run].step
    server.world.end(run, None)
    server.second()
    assert server.world.launches == [run, run]
    assert server.world.drivers[run].step >= step, "it was told to resume"
    server.until(run, QueueState.ACTIVE)
    assert "driver_lost" in kinds(server, run)


def test_no_number_of_failed_probes_ends_a_run_whose_lease_moves(server: Server) -> None:
    run = active(server)
    driver = server.world.drivers[run]
    driver.alive = None
    for _ in range(400):
        driver.lease_moved, driver.state, driver.exit_code = True, RunState.FAILED, 1
        server.ticker.tick()
        server.time.pass_s(1.0)
    assert server.state(run) is QueueState.ACTIVE
    assert server.world.launches == [run]
    assert server.world.killed == []


def test_a_driver_that_cannot_be_seen_is_given_up_when_its_lease_has_not_moved_for_the_ttl(server: Server) -> None:
    run = active(server)
    driver = server.world.drivers[run]
    driver.alive, driver.lease_moved = None, False
    for _ in range(int(TTL_S) - 5):
        server.ticker.tick()
        server.time.pass_s(1.0)
    server.time.monotonic_s += 3600  # this machine was suspended: it has not seen whether the lease moved
    server.ticker.tick()
    assert server.world.launches == [run]
    for _ in range(4):
        server.ticker.tick()
        server.time.pass_s(1.0)
    assert server.world.launches == [run, run]


def test_a_driver_that_lives_without_its_lease_is_ended_only_if_it_makes_no_step_either(server: Server) -> None:
    run = active(server)
    driver = server.world.drivers[run]
    driver.lease_moved = False
    for _ in range(400):
        driver.step += 1
        server.ticker.tick()
        server.time.pass_s(1.0)
    assert server.world.killed == []
    for _ in range(310):
        server.ticker.tick()
        server.time.pass_s(1.0)
    assert server.world.killed == [run]
    server.until(run, QueueState.ACTIVE)


def test_a_failed_run_is_tried_again_after_growing_pauses_until_its_budget_is_used_up(server: Server) -> None:
    run = server.submit(job(more="schedule: {retries: 2}\n"))
    pauses = []
    for _ in range(2):
        server.until(run, QueueState.ACTIVE, limit=200)
        server.world.end(run, RunState.FAILED, 1, "the bucket does not answer")
        row = server.until(run, QueueState.BACKOFF)
        waits = server.queue.run(run, ANN).waits
        assert waits is not None
        assert waits.obstacle == "backoff"
        assert "the bucket does not answer" in waits.message
        assert row.retry_at_s is not None
        began_s = server.time.unix_s
        server.until(run, QueueState.SUSPENDED, QueueState.STARTING, limit=200)
        pauses.append(server.time.unix_s - began_s)
    assert pauses[0] == pytest.approx(FIRST_PAUSE_S, abs=2)
    assert pauses[1] == pytest.approx(2 * FIRST_PAUSE_S, abs=2)
    server.until(run, QueueState.ACTIVE, limit=200)
    server.world.end(run, RunState.FAILED, 1, "the bucket does not answer")
    row = server.until(run, QueueState.FAILED)
    assert (row.reason, row.attempt) == ("the bucket does not answer", 3)
    assert len(server.world.launches) == 3
    view = server.queue.retry(run, ANN)
    assert (view.state, view.attempt) == (QueueState.SUSPENDED, 4)
    server.until(run, QueueState.ACTIVE)


def test_a_mistake_of_the_user_is_not_tried_again(server: Server) -> None:
    run = active(server)
    server.world.end(run, RunState.FAILED, 2, "data.sources[0]: no file matches")
    row = server.until(run, QueueState.FAILED)
    assert row.reason == "data.sources[0]: no file matches"
    server.second(100)
    assert server.world.launches == [run]


def test_a_run_in_backoff_keeps_its_place(server: Server) -> None:
    run = active(server, "first", workers="8")
    later = [server.submit(job(f"later{number}", workers="8")) for number in range(2)]
    server.world.end(run, RunState.FAILED, 1, "unlucky")
    server.until(later[0], QueueState.ACTIVE)
    endless(server, later[0])
    server.second(20)
    assert server.state(run) is QueueState.SUSPENDED
    assert server.queue.queues(ANN)[0].waiting == [run, later[1]], "its order is that of its submission"


def test_a_clock_that_jumps_ends_no_pause(server: Server) -> None:
    run = active(server)
    server.world.end(run, RunState.FAILED, 1, "unlucky")
    server.until(run, QueueState.BACKOFF)
    server.second()
    server.time.unix_s += 1e7
    server.second(3)
    assert server.state(run) is QueueState.BACKOFF
    server.time.unix_s -= 2e7
    server.until(run, QueueState.STARTING, limit=20)


def test_a_driver_that_ends_at_once_again_and_again_is_no_endless_loop(server: Server) -> None:
    run = server.submit(job(more="schedule: {retries: 0}\n"))
    for _ in range(40):
        server.ticker.tick()
        driver = server.world.drivers[run]
        if driver.alive:
            driver.state = None
            server.world.end(run, None)
        server.time.pass_s(1.0)
    row = server.row(run)
    assert row.state is QueueState.FAILED
    assert row.reason == "its driver has vanished 4 times without a step"
    assert len(server.world.launches) == 4


def test_a_driver_that_fails_before_it_has_the_run_is_a_failure_with_its_reason(server: Server) -> None:
    run = server.submit(job(more="schedule: {retries: 0}\n"))
    server.ticker.tick()
    server.world.end(run, RunState.STOPPED, 1, "no permission to write there")
    assert server.until(run, QueueState.FAILED).reason == "no permission to write there"


def test_a_driver_that_cannot_be_started_is_tried_again_and_a_wrong_job_is_not(server: Server) -> None:
    server.world.fail_launch = ConvoyError("no more processes")
    run = server.submit(job())
    row = server.until(run, QueueState.BACKOFF)
    assert row.reason == "its driver cannot be started: no more processes"
    server.world.fail_launch = None
    server.until(run, QueueState.ACTIVE)
    server.world.fail_launch = UsageError("the job is wrong")
    assert server.until(server.submit(job("wrong")), QueueState.FAILED).reason == (
        "its driver cannot be started: the job is wrong"
    )


def suspend(run: str) -> Decision:
    return Decision({}, {run: "urgent-1"}, {})


def test_a_suspended_run_gives_its_capacity_back_and_continues_where_it_was(server: Server) -> None:
    run = active(server, workers="8")
    server.second(3)
    server.decide = lambda facts: suspend(run)
    server.second()
    assert server.state(run) is QueueState.SUSPENDING
    server.decide = lambda facts: Decision({}, {}, {})
    row = server.until(run, QueueState.SUSPENDED)
    server.second(2)
    assert server.row(run).booked == {}
    assert row.step > 3
    server.decide = fifo
    server.until(run, QueueState.ACTIVE)
    assert server.world.drivers[run].step >= row.step
    assert server.world.killed == []


def test_a_person_who_pauses_a_run_that_is_being_suspended_has_it_paused(server: Server) -> None:
    run = active(server)
    server.decide = lambda facts: suspend(run)
    server.second()
    assert server.queue.pause(run, ANN).state is QueueState.PAUSING
    server.decide = fifo
    server.until(run, QueueState.PAUSED)
    server.second(10)
    assert server.state(run) is QueueState.PAUSED
    assert server.queue.resume(run, ANN).state is QueueState.SUSPENDED
    server.until(run, QueueState.ACTIVE)


@pytest.mark.parametrize("state", [QueueState.SUSPENDING, QueueState.PAUSING, QueueState.CANCELLING])
def test_a_driver_that_does_not_follow_is_ended_after_a_bound(server: Server, state: QueueState) -> None:
    run = active(server)
    server.world.drivers[run].deaf = True
    if state is QueueState.SUSPENDING:
        server.decide = lambda facts: suspend(run)
        server.second()
        server.decide = lambda facts: Decision({}, {}, {})
    elif state is QueueState.PAUSING:
        server.queue.pause(run, ANN)
    else:
        server.queue.cancel(run, ANN)
    server.second(int(STOP_LIMIT_S[state]) - 2)
    assert (server.state(run), server.world.killed) == (state, [])
    server.second(10)
    assert server.world.killed == [run]
    after = {
        QueueState.SUSPENDING: QueueState.SUSPENDED,
        QueueState.PAUSING: QueueState.PAUSED,
        QueueState.CANCELLING: QueueState.CANCELLED,
    }
    assert server.state(run) is after[state]


def test_a_cancelled_run_leaves_nothing(server: Server) -> None:
    run = active(server, workers="8")
    server.queue.cancel(run, ANN)
    server.until(run, QueueState.CANCELLED)
    server.second(2)
    assert server.row(run).settled
    assert server.world.held_now == {}
    just_booked = server.submit(job("soon"))
    server.ticker.tick()
    server.queue.cancel(just_booked, ANN)
    server.until(just_booked, QueueState.CANCELLED)
    assert server.world.held_now == {}


def test_a_run_that_ends_while_it_is_stopped_has_succeeded(server: Server) -> None:
    run = active(server)
    server.world.drivers[run].deaf = True
    server.queue.pause(run, ANN)
    server.second()
    server.world.end(run, RunState.SUCCEEDED, 0)
    assert server.until(run, QueueState.SUCCEEDED).ended_s is not None


def test_a_grant_changes_and_both_are_booked_until_the_driver_has_answered(server: Server) -> None:
    run = active(server, workers="{min: 1, max: 8}")

    def grow(facts: QueueFacts) -> Decision:
        return Decision({run: {"b": 3}}, {}, {})

    server.decide = grow
    server.ticker.tick()
    row = server.row(run)
    assert (row.booked, row.granted, row.grant_number) == ({"a": 1, "b": 3}, {"b": 3}, 2)
    server.ticker.tick()
    assert server.row(run).grant_number == 2, "the same decision again is no new grant"
    server.second(3)
    assert server.row(run).booked == {"b": 3}
    assert server.world.held_now[run] == {"b": 3}
    messages = [event.message for event in server.queue.events(run, 0, 100, ANN)]
    assert "grows from 1 to 3 workers: 3 on b" in messages


def test_a_run_has_only_so_much_time(server: Server) -> None:
    run = server.submit(job(more="schedule: {max_runtime: 30}\n"))
    server.until(run, QueueState.STARTING)
    endless(server, run)
    server.until(run, QueueState.ACTIVE)
    server.time.monotonic_s += 1e6
    server.time.unix_s += 1e6
    server.second(10)
    assert server.state(run) is QueueState.ACTIVE, "a jump of the clocks uses up nothing"
    row = server.until(run, QueueState.FAILED)
    assert "max_runtime" in str(row.reason)
    assert row.active_s == pytest.approx(30, abs=3)
    server.queue.retry(run, ANN)
    server.until(run, QueueState.ACTIVE)
