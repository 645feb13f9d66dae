"""`WorkerGroup`: what the run controller asks of the workers and their cluster. `gang` implements it on Ray; tests
script it."""

from collections.abc import Callable, Sequence
from typing import Protocol

from orchestrator.checkpoint.survey.durability import VaultReport
from orchestrator.checkpoint.survey.inventory import WholeStep
from orchestrator.data.executor import Executor
from orchestrator.domain.devices.device_room import DeviceRoom
from orchestrator.domain.generation import Adopted, ClusterSize, GenerationOutcome, LeftBehind, Shortage
from orchestrator.domain.session import Question, TrainPlan
from orchestrator.domain.step_report import StepReport
from orchestrator.metrics.event_bus import EventBus
from orchestrator.planner.model_shape import ModelShape
from orchestrator.planner.vault_memory import VaultNeed


class WorkerGroup(Protocol):
    """The workers of one run. All methods are for one thread. Methods that may take long return None if the run was
    stopped meanwhile."""

    def connect(self, preload: Sequence[str] = ()) -> ClusterSize:
        """Reach the cluster, or start it. `preload`: modules that every worker imports. Raises ClusterError."""

    def adopt(self) -> Adopted | None:
        """Take over the vaults that an earlier driver of the run left, and end its workers; None if there are none.
        Raises ClusterError if its workers cannot be ended."""

    def survey(self) -> Sequence[WholeStep]:
        """The steps that the vaults hold completely, newest first."""

    def reports_after(self, step: int) -> Sequence[StepReport]:
        """Step reports of the vaults that are newer than `step`, oldest first."""

    def survey_vaults(self, take: Callable[[Sequence[VaultReport]], None]) -> None:
        """From now on ask the vaults every few seconds what they hold; `take` is called from another thread."""

    @property
    def memory_kept_s(self) -> float:
        """How long the vaults keep their states without a driver; 0: they end with it."""

    def start_workers(
        self, warm: tuple[str, ...], later: tuple[str, ...], check: str | None, question: Question | None = None
    ) -> int | None:
        """Reserve and start as many workers as fit; how many. They answer the `question`, then import `warm`; workers
        that join later import `later` too. Waits for the device check `check`. Raises ClusterError, DeviceError."""

    def wait_for_answers(self) -> str | None:
        """The answer to the question of `start_workers`: why it could not be answered, if so. Raises UsageError if the
        answer is that the run must not start."""

    def executor(self) -> Executor:
        """Runs functions on the nodes of the cluster."""

    @property
    def workers_by_node(self) -> tuple[int, ...]:
        """Workers on each node that has some."""

    @property
    def reserves_memory(self) -> bool:
        """The job reserves host memory for each worker."""

    def plan_vaults(self, shape: ModelShape) -> tuple[VaultNeed | None, str | None]:
        """What the vaults will take, and a warning if a recovery may not find room. Raises ClusterError if the vaults
        do not fit."""

    def memory_per_worker_bytes(self, workers: int) -> int:
        """Host memory that one of `workers` may use."""

    def device_room(self) -> DeviceRoom | None:
        """Memory of the smallest GPU of the workers; None: they train on CPUs."""

    def train(self, entry: str, plan: TrainPlan, readable: Sequence[str], bus: EventBus) -> GenerationOutcome | None:
        """Run the entry point on every worker until the generation ends. The bus gets their events and step reports.
        `readable`: directories of this host that workers may read. None: stopped before it began."""

    def reform(self, waits: Callable[[Shortage | None], None]) -> int | None:
        """Form the next generation of the workers that are left and those that have come; how many there are.

        If they are fewer than the minimum, wait for more: `waits` gets the shortage once, and None when it is over.
        Raises ClusterError if enough can never come, or not within the time that the job allows.
        """

    def leave_vaults(self, stored_step: int) -> LeftBehind | None:
        """The run ends without success: leave the vaults to a later driver if they hold a step after `stored_step` and
        can outlive this one; None if not."""

    def close(self) -> None:
        """End the workers and leave the cluster, or end it if it was started for this run. Idempotent."""
