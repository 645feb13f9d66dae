"""Text about the state that a run keeps in the memory of its nodes."""

from orchestrator.cli.display import formatting, gpu_fit_text
from orchestrator.domain.events import VaultsAdopted, VaultsKept, VaultsPlanned
from orchestrator.planner.vault_memory import spread_evenly, vault_need
from orchestrator.spec.job import JobSpec


def planned(event: VaultsPlanned) -> str:
    """How much memory the vaults use."""
    copies = event.copies
    where = f"own node and {_nodes(copies, 'other ')}" if copies else "own node only"
    return (
        f"{formatting.size(event.node_bytes)} of state on a node, "
        f"{formatting.size(event.recovery_bytes)} during a recovery; each worker's state is kept on its {where}"
    )


def adopted(event: VaultsAdopted) -> str:
    """What a resume took over."""
    step, ended = event.step, event.workers_ended
    holds = f"step {step} is complete" if step is not None else "no step is complete"
    text = f"the state in the memory of {_nodes(event.vaults)} that the previous driver left; {holds}"
    return text + (f"; {ended} of its workers were still running and have been ended" if ended else "")


def kept(event: VaultsKept) -> str:
    """What stays in memory after the end of a run."""
    return (
        f"step {event.step} stays in the memory of {_nodes(event.vaults)} until "
        f"{formatting.when(event.until_s)}: resume the run before that"
    )


def estimate(spec: JobSpec) -> str | None:
    """What a job will keep in memory, as far as it is known before anything runs; None if the model is not."""
    if not spec.checkpoint.memory:
        return "no state is kept in memory: losing a worker repeats all steps since the last checkpoint"
    shape, workers = gpu_fit_text.known_shape(spec), gpu_fit_text.most_workers(spec)
    if shape is None:
        return None
    nodes = workers if spec.cluster.address is not None else spec.cluster.nodes or 1
    need = vault_need(spec, shape, spread_evenly(workers, nodes))
    return None if need is None else f"about {planned(need.planned)}"


def _nodes(count: int, which: str = "") -> str:
    return f"{count} {which}node{'' if count == 1 else 's'}"
