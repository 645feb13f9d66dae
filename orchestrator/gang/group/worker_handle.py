"""One worker as the driver knows it, and the meaning of its end."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.clusters.ray.handles import ActorHandle, ObjectRef, PlacementGroup
from orchestrator.clusters.ray.worker_death import DeathKind, worker_death
from orchestrator.domain.devices.device_room import DeviceRoom
from orchestrator.domain.generation import Ending, FailureDetails, WorkerFailure
from orchestrator.domain.session import TrainResult
from orchestrator.gang.agent.output_capture import last_lines
from orchestrator.gang.agent.ray_session import Assignment
from orchestrator.gang.agent.report_queue import Heartbeat
from orchestrator.gang.agent.worker_actor import Hello, Raised
from orchestrator.gang.group.gang_policy import explain_death

TAIL_LINES = 40


@dataclass
class WorkerHandle:
    """One worker process, and its role in the present generation."""

    actor: ActorHandle
    hello: Hello
    group: PlacementGroup
    """Its reservation: a placement group of one bundle."""
    assignment: Assignment = field(default_factory=lambda: Assignment(-1, 0, 0, ""))
    room: DeviceRoom | None = None
    """Memory of its GPU when its process started; None if it has none or was not asked."""
    run_ref: ObjectRef | None = None
    poll_ref: ObjectRef | None = None
    heartbeat: Heartbeat | None = None
    seen: int = 0
    """Number of the last batch that arrived."""
    poll_again_s: float = 0.0
    """Earliest time of the next poll after one that failed."""
    renewed_s: float = 0.0
    result: TrainResult | None = None
    failure: WorkerFailure | None = None
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))

    @property
    def name(self) -> str:
        """Of its process, in the cluster."""
        return f"{self.hello.node_id}:{self.hello.pid}"

    @property
    def rank(self) -> int:
        return self.assignment.rank

    @property
    def over(self) -> bool:
        """It has ended its role in this generation, with a result or a failure."""
        return self.result is not None or self.failure is not None

    @property
    def lives(self) -> bool:
        """Its process is alive, as far as is known, and can take part in another generation."""
        return self.failure is None or (self.failure.ending is Ending.RAISED and not self.failure.ends_process)

    def begin(self, assignment: Assignment, now_s: float) -> None:
        """Start a new generation."""
        self.assignment, self.renewed_s = assignment, now_s
        self.run_ref = self.poll_ref = self.heartbeat = self.result = self.failure = None

    def renew(self, beat: Heartbeat, at_s: float) -> None:
        """Take a heartbeat. One that is about an earlier generation shows that the process lives, and no more."""
        self.renewed_s = max(self.renewed_s, at_s)
        if beat.generation == self.assignment.generation:
            self.heartbeat = beat

    def take_end(self, ended: TrainResult | Raised, now_s: float) -> None:
        """Its entry point returned."""
        if isinstance(ended, Raised):
            message = f"{ended.type}: {ended.message}" if ended.message else ended.type
            self.failure = WorkerFailure(
                ended.rank,
                Ending.RAISED,
                now_s,
                message,
                ended.traceback_text,
                ended.hint,
                FailureDetails.from_json(ended.details),
            )
        else:
            self.result = ended

    def take_death(self, error: Exception, now_s: float, oom_kills: int) -> None:
        """Its process is gone: Ray raised `error`. `oom_kills`: processes that its host's kernel killed for memory."""
        told = worker_death(error)
        where = f"on {self.hello.host} ({self.hello.node_ip}), process {self.hello.pid}"
        if told.kind is DeathKind.NODE_DIED:
            hint = "the machine, its network or its raylet is gone"
            what = f"its node died {where}"
            alive_s = self.renewed_s
            self.failure = WorkerFailure(self.rank, Ending.NODE_DIED, now_s, what, told.message, hint, alive_s=alive_s)
            return
        tail = last_lines(Path(self.hello.output), TAIL_LINES) or list(self.recent)
        death = explain_death(told, tail, oom_kills)
        details = FailureDetails(cause=death.cause)
        what = f"its process {death.text} {where}"
        self.failure = WorkerFailure(
            self.rank, Ending.PROCESS_DIED, now_s, what, "\n".join(tail), death.hint, details, self.renewed_s
        )

    def take_silence(self, message: str, now_s: float, ending: Ending = Ending.NODE_SILENT) -> None:
        """Give it up: neither it nor anything else on its node answers. `ending`: NODE_DIED if the node is gone."""
        where = f"on {self.hello.host} ({self.hello.node_ip}), process {self.hello.pid}"
        hint = "the machine is down or stopped, or its network is cut; it is not used again in this run"
        self.failure = WorkerFailure(self.rank, ending, now_s, f"{message} {where}", "", hint, alive_s=self.renewed_s)

    def take_hang(self, message: str, now_s: float, still_s: float) -> None:
        """Give it up: no step finishes, because of this worker or of an unknown one. There has been no progress for
        `still_s`."""
        where = f"on {self.hello.host} ({self.hello.node_ip}), process {self.hello.pid}"
        hint = "the stacks of all workers are in the run's incidents directory; recovery.hang_timeout_s sets the bound"
        alive_s = now_s - still_s
        self.failure = WorkerFailure(self.rank, Ending.HUNG, now_s, f"{message} {where}", "", hint, alive_s=alive_s)


def taken_places(members: Sequence[WorkerHandle]) -> list[PlacementGroup]:
    """Placement groups of the workers that are alive."""
    return [member.group for member in members if member.lives]


def is_broken(members: Sequence[WorkerHandle]) -> bool:
    """Whether a worker of this generation was lost or raised, so that the gang will be formed again."""
    return any(member.failure is not None for member in members)


def assignments(hellos: Sequence[Hello]) -> list[tuple[int, Assignment]]:
    """Ranks for workers: those of a node are consecutive, and nodes keep the order in which they appear. Each with the
    worker's index in `hellos`."""
    order: dict[str, int] = {}
    for hello in hellos:
        order.setdefault(hello.node_id, len(order))
    placed = sorted(range(len(hellos)), key=lambda index: (order[hellos[index].node_id], index))
    on_host: dict[tuple[str, str], int] = {}
    found = []
    for rank, index in enumerate(placed):
        hello = hellos[index]
        host = (hello.host, hello.node_ip)
        local_rank = on_host.get(host, 0)
        on_host[host] = local_rank + 1
        found.append((index, Assignment(rank, len(hellos), local_rank, hello.node_ip, node_id=hello.node_id)))
    return found


def first_line(error: Exception) -> str:
    """The first line of an exception's message, or its type if that is empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def oom_kills() -> int:
    """Processes this host's kernel has killed for memory since it booted; 0 if unknown."""
    try:
        text = Path("/proc/vmstat").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)
