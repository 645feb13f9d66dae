"""What workers say, as the driver takes it in: pushed reports, polls, ends, last words.

Workers push their reports over a connection (`report_sender`, `report_receiver`). A worker that is not connected, not
yet or because it cannot reach the driver, is polled through Ray.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import ray

from orchestrator.clusters.ray.handles import ObjectRef
from orchestrator.domain.events import CheckpointSaved, CheckpointStarted, Event, WorkerLog
from orchestrator.domain.generation import Ending
from orchestrator.domain.session import Leave
from orchestrator.domain.step_report import StepReport
from orchestrator.gang.agent.output_capture import last_lines
from orchestrator.gang.agent.report_frames import BEAT_S
from orchestrator.gang.agent.report_queue import Published, ReportBatch
from orchestrator.gang.group.gang_policy import unseen_lines
from orchestrator.gang.group.report_inbox import Pushed, ReportInbox
from orchestrator.gang.group.worker_handle import WorkerHandle
from orchestrator.gang.health.hang_monitor import HangMonitor
from orchestrator.gang.vaults.checkpoint_committer import CheckpointCommitter, Pacer
from orchestrator.metrics.event_bus import EventBus

POLL_S = BEAT_S
"""A poll's longest wait in the worker: what happens there arrives at once all the same."""
STALE_S = 1.2
"""A connected worker that has pushed nothing for so long is polled, too: its connection may be cut."""
TICK_S = 0.1
DRAIN_S = 0.6
DRAIN_POLLS = 5
"""Of each worker at the end: an answer may be lost, and the next one is then the same answer again."""


class Listener:
    """Takes in what the members of one generation say, and passes it on."""

    def __init__(
        self,
        members: Sequence[WorkerHandle],
        generation: int,
        bus: EventBus,
        oom_kills: Callable[[], int],
        inbox: ReportInbox,
    ) -> None:
        self._members, self._generation = members, generation
        self._bus, self._oom_kills, self._inbox = bus, oom_kills, inbox
        self._by_name = {member.name: member for member in members}
        self._asked: dict[ObjectRef, WorkerHandle] = {}
        """The members' runs and polls that Ray has not answered."""
        self._poll_again_s = 0.0
        self.last: StepReport | None = None
        """The newest report of this generation."""
        self.saves: CheckpointCommitter | None = None
        self.pacer: Pacer | None = None
        self.hangs: HangMonitor | None = None

    def begin(self) -> None:
        """Listen to the runs of the members, which have been started."""
        for member in self._members:
            self._watch(member, member.run_ref)

    def listen(self, timeout_s: float = TICK_S) -> None:
        """Take in whatever has arrived, waiting a tick for something."""
        self._renew()
        if time.monotonic() >= self._poll_again_s:
            self._poll()
        if not self._asked:
            return
        ended: list[WorkerHandle] = []
        for news in self._inbox.wait(timeout_s):
            if isinstance(news, Pushed):
                self._take_pushed(news)
                continue
            member = self._asked.pop(news.ref, None)  # None: a call of an earlier generation
            if member is not None and news.ref == member.run_ref:
                ended.append(member)
            elif member is not None and news.ref == member.poll_ref:
                self._take_poll(member)
        self._renew()
        for member in ended:  # what they said before how they ended
            self._take_end(member)

    def _renew(self) -> None:
        for name, sign in self._inbox.beats().items():
            member = self._by_name.get(name)
            if member is not None:
                member.renew(sign.beat, sign.at_s)

    def _poll(self) -> None:
        """Poll the members that push nothing."""
        now_s = time.monotonic()
        self._poll_again_s = now_s + TICK_S
        for member in self._members:
            if member.poll_ref is not None or member.run_ref is None or now_s < member.poll_again_s:
                continue
            if now_s - member.renewed_s >= STALE_S or not self._inbox.connected(member.name):
                member.poll_ref = member.actor.poll.remote(POLL_S, member.seen)
                self._watch(member, member.poll_ref)

    def _watch(self, member: WorkerHandle, ref: ObjectRef | None) -> None:
        if ref is not None:
            self._asked[ref] = member
            self._inbox.watch(ref)

    def drain(self) -> None:
        """Everything still queued in workers that live, or left in the output files of those that died; briefly.

        A worker whose part is over answers polls at once.
        """
        for member in self._members:
            if not member.lives:
                member.poll_ref = None
                tail = last_lines(Path(member.hello.output), 1000)
                self._log(member, unseen_lines(tail, list(member.recent)))
        self._take_all({member.poll_ref: member for member in self._members if member.poll_ref is not None})
        left = [member for member in self._members if member.lives]
        for _ in range(DRAIN_POLLS):
            left = self._take_all({member.actor.poll.remote(0.0, member.seen): member for member in left})

    def tell(self, events: Sequence[Event]) -> None:
        """Publish events."""
        for event in events:
            body = event.body
            if isinstance(body, CheckpointSaved) and self.pacer is not None:
                self.pacer.take(body)
            if isinstance(body, CheckpointSaved) and self.hangs is not None:
                self.hangs.take_checkpoint(body)
            self._bus.publish(event)

    def _take_all(self, refs: dict[ObjectRef, WorkerHandle]) -> list[WorkerHandle]:
        """Take in these answers. The members that may have more to say: an answer was lost, or held something."""
        if not refs:
            return []
        ready, _ = ray.wait(list(refs), num_returns=len(refs), timeout=DRAIN_S)
        more = []
        for ref in ready:
            member, seen = refs[ref], refs[ref].seen
            try:
                self._digest(member, ray.get(ref))
            except ray.exceptions.RayError:
                more.append(member)
                continue
            if member.seen != seen:
                more.append(member)
        for member in refs.values():
            member.poll_ref = None
        return more

    def _take_pushed(self, pushed: Pushed) -> None:
        member = self._by_name.get(pushed.worker)
        if member is not None:  # else of a former member
            self._digest(member, pushed.batch)
            self._inbox.confirm(pushed)

    def _take_poll(self, member: WorkerHandle) -> None:
        try:
            batch: ReportBatch = ray.get(member.poll_ref)
        except ray.exceptions.RayError:
            # If its process is gone, its run ends in the same way, and says more. Else only this answer is lost: what
            # was in it is sent again.
            member.poll_ref, member.poll_again_s = None, time.monotonic() + POLL_S
            return
        member.poll_ref = None
        member.renew(batch.heartbeat, time.monotonic())
        self._digest(member, batch)

    def _digest(self, member: WorkerHandle, batch: ReportBatch) -> None:
        if batch.number <= member.seen:
            return  # it has arrived before: pushed and polled, or believed lost
        member.seen = batch.number
        published = {item.key: item.value for item in batch.items if isinstance(item, Published)}
        if published:
            for other in self._members:
                if other is not member:
                    other.actor.notify.remote(self._generation, published, Leave.NO)
        for item in batch.items:
            if isinstance(item, StepReport):
                self.last = item
                self._bus.publish(item)
            elif isinstance(item, Event):
                self.tell([item])
                if isinstance(item.body, CheckpointStarted) and self.saves is not None:
                    self.saves.begin(self._generation, item.body)
        lines = list(batch.lines)
        if batch.lines_dropped:
            lines.insert(0, f"[{batch.lines_dropped} lines were dropped here: there were too many at once]")
        self._log(member, lines)

    def _log(self, member: WorkerHandle, lines: Sequence[str]) -> None:
        now_s = time.time()
        member.recent.extend(lines)
        for line in lines:
            self._bus.publish(Event(WorkerLog(member.rank, line), now_s))

    def _take_end(self, member: WorkerHandle) -> None:
        ref, member.run_ref = member.run_ref, None
        now_s = time.monotonic()
        if member.failure is not None and member.failure.ending is not Ending.RAISED:
            return  # given up before
        try:
            member.take_end(ray.get(ref), now_s)
        except ray.exceptions.RayError as error:
            member.take_death(error, now_s, self._oom_kills())
