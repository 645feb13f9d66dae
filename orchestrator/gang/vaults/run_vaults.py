"""The vaults of one run, from the driver's first look for them to their end. Ray is imported at their first use."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from orchestrator.checkpoint.storage.retention import Rule
from orchestrator.checkpoint.survey.durability import VaultReport
from orchestrator.checkpoint.survey.inventory import WholeStep, whole_steps
from orchestrator.checkpoint.survey.surveyor import Surveyor
from orchestrator.clusters.cluster_provider import ClusterProvider
from orchestrator.domain.errors import ClusterError, LeaseLostError
from orchestrator.domain.generation import LeftBehind
from orchestrator.domain.lease import token_of
from orchestrator.domain.step_report import StepReport
from orchestrator.json_values import parse_object
from orchestrator.spec.job import JobSpec

if TYPE_CHECKING:
    from orchestrator.gang.vaults.checkpoint_committer import CheckpointCommitter
    from orchestrator.gang.vaults.vault_clients import VaultClients


class RunVaults:
    """What the driver of a run does with its vaults, whether there are any or not. For one thread."""

    def __init__(self, spec: JobSpec, run_id: str, lease: int) -> None:
        """`lease`: the token of this driver."""
        self._spec, self._run_id, self._lease = spec, run_id, lease
        self.clients: VaultClients | None = None
        self._surveyor: Surveyor | None = None

    def start(self, cluster: ClusterProvider) -> "VaultClients | None":
        """The clients, made if the spec wants state in memory. The vaults start with the gang."""
        if self.clients is None and self._spec.checkpoint.memory:
            self.clients = self._new(cluster)
        return self.clients

    def adopt(self, cluster: ClusterProvider) -> tuple[int, int]:
        """Take over the vaults that an earlier driver of this run left: how many, and the newest generation that they
        know. `fence` comes next. Raises LeaseLostError if they belong to a later driver."""
        from orchestrator.gang.vaults.adoption import find_vaults

        found = find_vaults(self._run_id)
        if not found:
            return 0, 0
        self.clients = self._new(cluster)
        generation = self.clients.adopt(found)
        if token_of(generation) > self._lease:
            raise LeaseLostError(
                f"the vaults of run {self._run_id} belong to a later driver (lease {token_of(generation)}; this driver "
                f"has lease {self._lease})"
            )
        return len(found), generation

    def fence(self, generation: int) -> frozenset[int]:
        """End the workers of generations before this one, and refuse what they write later; the processes that were
        ended. Raises ClusterError if some cannot be ended."""
        assert self.clients is not None
        gone, left = self.clients.fence(generation)
        if left:
            raise ClusterError(
                f"workers of the previous driver of this run cannot be ended: processes {left}",
                hint="end them on their nodes: the run cannot continue while they might train",
            )
        return frozenset(gone)

    def watch(self, take: Callable[[Sequence[VaultReport]], None]) -> None:
        """From now on ask the vaults every few seconds what they hold; `take` is called from another thread."""
        self._surveyor = Surveyor(lambda: self.clients.contacts() if self.clients is not None else (), take)

    def survey(self) -> list[WholeStep]:
        """The steps that are complete in the vaults, the newest first."""
        return whole_steps(self.clients.survey()) if self.clients is not None else []

    def reports_after(self, step: int) -> list[StepReport]:
        """Reports in the vaults of the steps after the last one on record; empty if there are none."""
        found = self.clients.reports_after(step) if self.clients is not None else []
        return [StepReport.from_json(parse_object(data)) for data in found]

    def committer(self) -> "CheckpointCommitter | None":
        """What commits the checkpoints that the vaults write; None without vaults."""
        from orchestrator.gang.vaults.checkpoint_committer import CheckpointCommitter

        if self.clients is None:
            return None
        keep = self._spec.checkpoint
        rule = Rule(keep.keep_last, keep.keep_every, keep.keep_best)
        return CheckpointCommitter(self.clients.contacts, rule, self._lease)

    def leave(self, stored_step: int, kept_s: float) -> LeftBehind | None:
        """Leave the vaults behind for another driver, for `kept_s`, if they hold a later step than storage does; else
        None."""
        whole = self.survey()
        if self.clients is None or not whole or whole[0].step <= stored_step:
            return None
        left = LeftBehind(whole[0].step, len(self.clients.contacts()), kept_s)
        self.clients.release()
        self.clients = None
        return left

    def stop_watching(self) -> None:
        """End the surveys. Idempotent."""
        surveyor, self._surveyor = self._surveyor, None
        if surveyor is not None:
            surveyor.close()

    def _new(self, cluster: ClusterProvider) -> "VaultClients":
        from orchestrator.gang.vaults.vault_clients import VaultClients

        kept_s, domain = self._spec.recovery.memory_kept_s, self._spec.checkpoint.failure_domain
        return VaultClients(cluster, self._run_id, kept_s, domain)
