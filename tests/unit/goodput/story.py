"""A run as it is told to a ledger: by hand, with times of its own."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.domain.events import EventBody, NodeReservation, WorkersReserved
from orchestrator.domain.ranks.rank_report import CollectiveTimes, PhaseTimes, RankMemory, RankReport
from orchestrator.domain.ranks.rank_summary import summarise
from orchestrator.domain.step_report import StepReport
from orchestrator.goodput.ledger import Ledger
from orchestrator.goodput.ledger_result import LedgerResult
from orchestrator.goodput.ledger_view import result_of
from orchestrator.goodput.time_class import TimeClass
from orchestrator.goodput.worker_terms import WorkerTerms
from tests.events import body, event

T0 = 1_700_000_000.0
NO_TERMS = WorkerTerms()


@dataclass(frozen=True)
class Rank:
    """What one rank does in a step, in seconds."""

    compute_s: float = 1.0
    data_wait_s: float = 0.0
    collective_s: float = 0.0
    checkpoint_s: float = 0.0
    snapshot_s: float = 0.0
    on_gpu: bool = False

    def report(self, rank: int) -> RankReport:
        phases = PhaseTimes(
            self.data_wait_s, self.compute_s, self.collective_s, 0.0, self.checkpoint_s, self.snapshot_s
        )
        memory = RankMemory(1000, 2000, 1000 if self.on_gpu else None)
        return RankReport(rank, 4, 100, phases, memory, CollectiveTimes(backward_s=self.collective_s))


def step_report(step: int, time_s: float, ranks: Sequence[Rank], step_time_s: float | None = None) -> StepReport:
    """A step as long as its slowest rank, unless said."""
    longest_s = max(each.compute_s + each.data_wait_s + each.collective_s + each.checkpoint_s for each in ranks)
    taken_s = longest_s if step_time_s is None else step_time_s
    return StepReport(
        step=step, time_s=time_s, epoch=0.1, loss=5.0, grad_norm=1.0, lr=1e-3, tokens=100 * len(ranks),
        target_tokens=90, samples=4 * len(ranks), first_position=0, data_digest=1, step_time_s=taken_s,
        tokens_per_s=100.0, tokens_per_s_per_worker=50.0, tflops_per_s=None, mfu=None, world_size=len(ranks),
        micro_batch=4, accumulation=1, ranks=summarise([each.report(rank) for rank, each in enumerate(ranks)]),
    )  # fmt: skip


def nodes(members: Mapping[str, int], joining: Mapping[str, int] | None = None) -> WorkersReserved:
    """The event about workers by the names of their nodes."""
    joining = joining or {}
    names = dict.fromkeys([*members, *joining])
    places = [
        NodeReservation(name, name and f"id-{name}", members.get(name, 0), joining.get(name, 0)) for name in names
    ]
    return WorkersReserved(tuple(places))


@dataclass
class Story:
    """Facts for a ledger. Times are seconds since `T0`."""

    ledger: Ledger = field(default_factory=Ledger)
    now_s: float = 0.0
    workers: int = 2

    def event(self, kind: type[EventBody], at_s: float, received_s: float | None = None, **fields: object) -> None:
        """An event of a kind, received when it happens unless said."""
        self.tell(body(kind, **fields), at_s, received_s)

    def tell(self, what: EventBody, at_s: float, received_s: float | None = None) -> None:
        """An event."""
        self.now_s = max(self.now_s, at_s if received_s is None else received_s)
        told = event(type(what), T0 + at_s, **vars(what))
        self.ledger.on_event(told, T0 + (at_s if received_s is None else received_s))

    def step(self, step: int, at_s: float, *ranks: Rank, step_time_s: float | None = None) -> None:
        """A step that ends now; of equal ranks unless said."""
        self.now_s = max(self.now_s, at_s)
        report = step_report(step, T0 + at_s, ranks or (Rank(),) * self.workers, step_time_s)
        self.ledger.on_step(report, T0 + at_s)

    def result(self, at_s: float | None = None, terms: WorkerTerms = NO_TERMS) -> LedgerResult:
        """The ledger at a time, by default that of the last fact. Whatever it is, it adds up."""
        found = result_of(self.ledger, T0 + (self.now_s if at_s is None else at_s), terms)
        check_sums(found)
        return found

    def seconds(self, at_s: float | None = None) -> dict[str, float]:
        """Worker-seconds by the names of the classes, to a tenth of a millisecond."""
        return {each.value: round(s, 4) for each, s in self.result(at_s).seconds.items() if round(s, 4)}


def check_sums(found: LedgerResult) -> None:
    """Classes, nodes and losses add up to the reserved time, and no incident costs more than there was."""
    near = {"rel_tol": 1e-6, "abs_tol": 1e-4}
    assert math.isclose(sum(found.seconds.values()), found.reserved_s, **near), (found.seconds, found.reserved_s)
    assert min(found.seconds.values(), default=0.0) >= 0.0
    by_node = sum(sum(node.seconds.values()) for node in found.by_node)
    assert math.isclose(by_node, found.reserved_s, **near), (by_node, found.reserved_s)
    productive = found.seconds.get(TimeClass.PRODUCTIVE, 0.0)
    assert math.isclose(sum(found.lost_s.values()) + productive, found.reserved_s, **near), found.lost_s
    for time_class in TimeClass:
        charged = sum(each.seconds.get(time_class, 0.0) for each in found.by_incident)
        assert charged <= found.seconds.get(time_class, 0.0) + 1e-4, time_class
    assert 0.0 <= found.goodput <= 1.0
    assert 0.0 <= found.ettr <= 1.0
