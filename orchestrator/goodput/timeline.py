"""Time as the ledger books it: what lies between two facts is open until it is known what it was spent on. Pure."""

from collections.abc import Mapping
from enum import StrEnum

from orchestrator.goodput.crew import Crew
from orchestrator.goodput.incident_book import IncidentBook
from orchestrator.goodput.step_lineage import AMOUNTS, LINEAGE_CLASSES, TOKENS, WALL, StepLineage
from orchestrator.goodput.time_books import ClassSeconds, TimeBooks
from orchestrator.goodput.time_class import TRAINING_CLASSES, TimeClass
from orchestrator.json_values import JsonFields, JsonObject, flag, mapping, number, numbers, text


class LedgerStage(StrEnum):
    """What the run is about. It decides what becomes of open time."""

    STARTUP = "startup"
    TRAINING = "training"
    RECOVERY = "recovery"
    RESIZING = "resizing"
    TAIL = "tail"
    """The last step is made."""


class Timeline:
    """Open and booked time of a run, over all of its drivers. Times are Unix seconds of one clock, in order."""

    def __init__(self) -> None:
        self.books, self.lineage = TimeBooks(), StepLineage()
        self.incidents = IncidentBook(self.books)
        self.now_s = 0.0
        """Of the last fact."""
        self.open_s = 0.0
        """The members' time from here to `now_s` is open."""
        self.joining_open_s = 0.0
        """The same of the joining workers."""
        self.stage = LedgerStage.STARTUP
        self.doing = TimeClass.STARTUP
        """What open time is outside of training."""
        self.driven = False
        """Whether a driver has the run: only its time counts."""
        self.elapsed_s = self.reserved_s = self.node_s = 0.0
        """Of wall clock, of workers, of nodes with workers."""
        self._step = [0.0] * AMOUNTS
        """What was booked for training since the last step."""
        self._between_s = 0.0
        """What a worker spent between the last two steps."""
        self._unknown_s = 0.0
        """For how long it has not been known on which nodes the workers are."""

    def advance(self, time_s: float) -> None:
        """It is later now."""
        passed_s = max(0.0, time_s - self.now_s)
        self.now_s += passed_s
        if self.driven:
            self.elapsed_s += passed_s
        self.reserved_s += passed_s * self.books.crew.workers
        self.node_s += passed_s * self.books.crew.nodes
        self._unknown_s += passed_s if not self.books.crew.known else 0.0
        self._close_joining()

    def skip_to(self, time_s: float) -> None:
        """Continue at a later time; what lies between does not count."""
        self.close(self.now_s, self.doing)
        self.now_s = self.open_s = self.joining_open_s = max(self.now_s, time_s)

    def close(self, until_s: float, time_class: TimeClass) -> None:
        """What is open until then was spent on this."""
        until_s = min(self.now_s, max(self.open_s, until_s))
        self.books.book(time_class, until_s - self.open_s)
        self.open_s = until_s

    def enter(self, stage: LedgerStage, doing: TimeClass) -> None:
        """What comes now is about something else."""
        self.stage, self.doing = stage, doing

    def carve(self, time_class: TimeClass, seconds: float) -> float:
        """Up to so much of what is open was spent on this; how much that was."""
        taken_s = max(0.0, min(self.now_s - self.open_s, seconds))
        self.open_s += taken_s
        if self.stage is LedgerStage.TRAINING and time_class in LINEAGE_CLASSES:
            self._train(time_class, taken_s)
        else:
            self.books.book(time_class, taken_s)
        return taken_s

    def make_step(self, step: int, split: Mapping[TimeClass, float], snapshot_s: float, tokens: int) -> None:
        """A step was made, and what is open was spent on it; `split` is what a worker spent on what. Time between steps
        that has no other class counts for them. `snapshot_s`: the copy to memory after the step before this one."""
        charged, self.books.charged = self.books.charged, None  # a step that counts costs no incident anything
        open_s, taken_s = self.now_s - self.open_s, sum(split.values())
        scale = min(1.0, open_s / taken_s) if taken_s > 0.0 else 0.0
        between_s = open_s - taken_s * scale
        for time_class, seconds in split.items():
            self._train(time_class, seconds * scale)
        # The copy was made after the step before this one, or on a GPU during this one.
        unclaimed_s = self._between_s + between_s + split.get(TimeClass.PRODUCTIVE, 0.0) * scale
        snapshot_s = min(snapshot_s, unclaimed_s)
        self._train(TimeClass.PRODUCTIVE, between_s - snapshot_s)
        self._train(TimeClass.SNAPSHOT_STALL, snapshot_s)
        self.open_s = self.now_s
        self._step[TOKENS] = tokens
        superseded = self.lineage.add(step, self._step, self.books.crew_id)
        self._step, self._between_s = [0.0] * AMOUNTS, max(0.0, min(between_s, unclaimed_s - snapshot_s))
        self.books.charged = charged
        self.books.move_to_recomputed(superseded)

    def _train(self, time_class: TimeClass, seconds: float) -> None:
        self.books.book(time_class, seconds)
        self._step[LINEAGE_CLASSES.index(time_class)] += seconds * self.books.crew.members
        if time_class in TRAINING_CLASSES:
            self._step[WALL] += seconds

    def stop_step(self) -> None:
        """The step that was being made is not finished any more."""
        self._step, self._between_s = [0.0] * AMOUNTS, 0.0

    def change_crew(self, crew: Crew, earlier_s: float = 0.0) -> None:
        """Other workers are reserved from now on; some of them had been for `earlier_s` worker-seconds before."""
        before = self.books.crew
        if not before.known and crew.known and crew.workers == before.workers:  # they were on these nodes all the time
            self.node_s += self._unknown_s * (crew.nodes - before.nodes)
        self._unknown_s = 0.0
        self.books.change(crew, self.lineage.crews)
        earlier_s = earlier_s if 0.0 < earlier_s < float("inf") else 0.0
        if crew.workers and earlier_s:
            self.reserved_s += earlier_s
            self.books.add(self.joining_class, earlier_s)

    @property
    def member_class(self) -> TimeClass:
        """What open time of members will probably be."""
        return TimeClass.PRODUCTIVE if self.stage is LedgerStage.TRAINING else self.doing

    @property
    def joining_class(self) -> TimeClass:
        """What the time of joining workers is."""
        return TimeClass.RESIZING if self.stage is LedgerStage.TRAINING else self.doing

    def _close_joining(self) -> None:
        self.books.book_joining(self.joining_class, self.now_s - self.joining_open_s)
        self.joining_open_s = self.now_s

    def pending(self, now_s: float) -> ClassSeconds:
        """Worker-seconds that are open at a moment, by what they will probably be."""
        crew, found = self.books.crew, ClassSeconds()
        for time_class, since_s, workers in (
            (self.member_class, self.open_s, crew.members),
            (self.joining_class, self.joining_open_s, crew.joining),
        ):
            found[time_class] = found.get(time_class, 0.0) + max(0.0, now_s - since_s) * workers
        return found

    def to_json(self) -> JsonObject:
        """All of it, for `timeline_from`."""
        return {
            "books": self.books.to_json(),
            "lineage": self.lineage.to_json(),
            "incidents": self.incidents.to_json(),
            "now_s": self.now_s,
            "open_s": self.open_s,
            "joining_open_s": self.joining_open_s,
            "stage": self.stage.value,
            "doing": self.doing.value,
            "driven": self.driven,
            "elapsed_s": self.elapsed_s,
            "reserved_s": self.reserved_s,
            "node_s": self.node_s,
            "step": list(self._step),
            "between_s": self._between_s,
            "unknown_s": self._unknown_s,
        }

    @classmethod
    def from_json(cls, value: JsonFields) -> "Timeline":
        """Raises JsonShapeError, or ValueError for a class or a stage that is not known."""
        timeline = cls()
        timeline.books = TimeBooks.from_json(mapping(value, "books"))
        timeline.lineage = StepLineage.from_json(mapping(value, "lineage"))
        timeline.incidents = IncidentBook.from_json(mapping(value, "incidents"), timeline.books)
        timeline.now_s, timeline.open_s = number(value, "now_s"), number(value, "open_s")
        timeline.joining_open_s = number(value, "joining_open_s")
        timeline.stage, timeline.doing = LedgerStage(text(value, "stage")), TimeClass(text(value, "doing"))
        timeline.driven, timeline.elapsed_s = flag(value, "driven"), number(value, "elapsed_s")
        timeline.reserved_s, timeline.node_s = number(value, "reserved_s"), number(value, "node_s")
        timeline._step = (numbers(value, "step") + [0.0] * AMOUNTS)[:AMOUNTS]
        timeline._between_s, timeline._unknown_s = number(value, "between_s"), number(value, "unknown_s")
        return timeline
