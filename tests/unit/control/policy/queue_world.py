"""A cluster and its runs, in which decisions are carried out with delay: what property tests of the scheduler drive."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from orchestrator.clusters.placement import EPSILON, NodeCapacity, WorkerRequest
from orchestrator.control.policy.decide import decide
from orchestrator.control.policy.queue_facts import Decision, Places, QueueFacts, QueueShare, ScheduledRun

NOW_S = 1_000_000_000.0
CPUS = 64.0


def node(number: int, gpus: int = 4) -> NodeCapacity:
    """An idle node with GPUs."""
    amounts = {"CPU": CPUS, "GPU": float(gpus)}
    return NodeCapacity(f"n{number}", f"node-{number}", amounts, amounts)


def ask(minimum: int, maximum: int | None = None, placement: str = "pack", gpus: float = 1.0) -> WorkerRequest:
    """Workers with GPUs."""
    return WorkerRequest({"CPU": 1.0, "GPU": gpus}, minimum, maximum or minimum, placement)


def union(first: Places, second: Places) -> dict[str, int]:
    """What is booked while one is exchanged for the other."""
    return {each: max(first.get(each, 0), second.get(each, 0)) for each in {**first, **second}}


@dataclass
class QueueWorld:
    """Time passes only when `pass_time` is called."""

    nodes: dict[str, NodeCapacity] = field(default_factory=dict)
    queues: Mapping[str, QueueShare] = field(default_factory=dict)
    now_s: float = NOW_S
    runs: dict[str, ScheduledRun] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)
    started_s: dict[str, float] = field(default_factory=dict)
    promised_s: dict[str, float] = field(default_factory=dict)
    """The first reservation of each run."""

    def facts(self) -> QueueFacts:
        """As the store would load them."""
        up = tuple(each for each in self.nodes.values() if each.node_id not in self.down)
        return QueueFacts(self.now_s, up, tuple(self.runs.values()), self.queues)

    def submit(self, request: WorkerRequest, work_s: float | None = None, priority: int = 0, **where: str) -> str:
        """A waiting run; its id."""
        order = len(self.started_s) + len(self.runs) + 1
        name = f"r{order}"
        while name in self.runs or name in self.started_s:
            order += 1
            name = f"r{order}"
        self.runs[name] = ScheduledRun(
            name, where.get("queue", "q"), where.get("user", "u"), priority, order, request, True, since_s=self.now_s,
            work_s=work_s,
        )  # fmt: skip
        return name

    def tick(self) -> Decision:
        """Decide, check and apply; drivers have not answered yet."""
        facts = self.facts()
        decision = decide(facts)
        check(facts, decision)
        for name, (start_s, _) in decision.reservations.items():
            self.promised_s.setdefault(name, start_s)
        for name, run in self.runs.items():
            self.runs[name] = replace(run, reserved=decision.reservations.get(name))
        for name, places in decision.grants.items():
            run = self.runs[name]
            if run.waits:
                self.started_s.setdefault(name, self.now_s)
                run = replace(run, waits=False, places=places, since_s=self.now_s)
            self.runs[name] = replace(run, places=union(run.places, places), granted=places, changed_s=self.now_s)
        for name in decision.suspensions:
            self.runs[name] = replace(self.runs[name], leaving=True)
        return decision

    def answer(self, name: str) -> None:
        """The driver of a run has carried out its newest grant, or ended."""
        run = self.runs[name]
        if run.leaving:
            self.runs[name] = replace(run, leaving=False, waits=True, places={}, granted={}, since_s=self.now_s)
        elif not run.waits:
            self.runs[name] = replace(run, places=run.granted)

    def answer_all(self) -> None:
        """All drivers."""
        for name in list(self.runs):
            self.answer(name)

    def settle(self, most: int = 12) -> None:
        """Tick and answer until nothing changes. Raises AssertionError if that takes more rounds."""
        for _ in range(most):
            self.answer_all()
            decision = self.tick()
            self.answer_all()
            if not decision.grants and not decision.suspensions:
                return
        raise AssertionError(f"still changing after {most} rounds: {decision}")

    def pass_time(self, seconds: float) -> None:
        """Runs work with what they have at least: the smaller of the old and the new grant."""
        self.now_s += seconds
        for name, run in list(self.runs.items()):
            if run.waits or run.work_s is None:
                continue
            workers = min(sum(run.places.values()), sum(run.granted.values()))
            left_s = run.work_s - seconds * workers
            if left_s <= EPSILON and not run.leaving:
                del self.runs[name]
            else:
                self.runs[name] = replace(run, work_s=max(left_s, 0.0))


def check(facts: QueueFacts, decision: Decision) -> None:
    """What holds for every decision."""
    assert decide(facts) == decision, "not deterministic"
    runs = {run.id: run for run in facts.runs}
    up = {each.node_id for each in facts.nodes}
    for name, places in decision.grants.items():
        run, workers = runs[name], sum(places.values())
        assert not run.leaving
        assert name not in decision.suspensions
        assert set(places) <= up, "granted where no node is"
        assert all(places.values())
        assert run.ask.minimum <= workers <= run.ask.maximum, "half a gang"
        assert dict(run.granted) != dict(places), "a grant that changes nothing"
        if run.ask.placement == "strict_spread":
            assert set(places.values()) == {1}
        if run.ask.placement == "strict_pack":
            assert len(places) == 1
    _no_place_twice(facts, decision)
    _limits(facts, decision)
    waiting = {run.id for run in facts.runs if run.waits} - set(decision.grants)
    assert set(decision.outlooks) == waiting, "each waiting run has an outlook, no other"
    assert sorted(each.position for each in decision.outlooks.values()) == list(range(1, len(waiting) + 1))
    assert all(each.message for each in decision.outlooks.values())
    for name, beneficiary in decision.suspensions.items():
        run = runs[name]
        if beneficiary == name:
            assert set(run.granted or run.places) - up, "suspended without a reason"
        elif not any(share.quota for share in facts.queues.values()):
            assert run.priority < runs[beneficiary].priority, "suspended for no higher priority"
    for started in (run for run in facts.runs if run.waits and run.id in decision.grants):
        for other in (runs[name] for name in waiting):
            same = (other.ask, other.queue, other.user) == (started.ask, started.queue, started.user)
            shorter = started.work_s is not None and (other.work_s is None or other.work_s > started.work_s)
            assert not (same and other.priority > started.priority) or shorter, "started before a higher priority"


def _no_place_twice(facts: QueueFacts, decision: Decision) -> None:
    used: dict[str, dict[str, float]] = {each.node_id: {} for each in facts.nodes}
    for run in facts.runs:
        booked = union(union(run.places, run.granted), decision.grants.get(run.id, {}))
        for name, workers in booked.items():
            for resource, amount in run.ask.bundle.items():
                if name in used:
                    used[name][resource] = used[name].get(resource, 0.0) + amount * workers
    for each in facts.nodes:
        for resource, amount in used[each.node_id].items():
            assert amount <= each.free.get(resource, 0.0) + EPSILON, f"{each.node_id} is booked twice"


def _limits(facts: QueueFacts, decision: Decision) -> None:
    for name, share in facts.queues.items():
        for resource, limit in share.limit.items():
            own = [run for run in facts.runs if run.queue == name]
            grown = [run.id for run in own if sum(decision.grants.get(run.id, {}).values()) > _workers(run)]
            used = sum(
                max(_workers(run), sum(decision.grants.get(run.id, {}).values())) * run.ask.bundle.get(resource, 0.0)
                for run in own
            )
            assert not grown or used <= limit + EPSILON, "beyond the limit of the queue"


def _workers(run: ScheduledRun) -> int:
    return sum(run.places.values())
