"""`resources`, `checkpoint` and `cluster`: what the job runs on, and how its state is kept."""

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.spec.spec_base import SpecModel

BUCKET_SCHEMES = ("s3", "gs", "az")
"""Schemes of URLs that checkpoints can be written to."""


class WorkersRange(SpecModel):
    """An elastic number of workers."""

    min: int = Field(ge=1)
    """Fewest workers to train with."""

    max: int = Field(ge=1)
    """Most workers to train with."""


class ResourcesSpec(SpecModel):
    """What one worker gets, and how many there are."""

    workers: Annotated[int, Field(ge=1)] | WorkersRange = 1
    """Number of workers, or `{min, max}`: as many as fit into the cluster."""

    cpus_per_worker: float = Field(default=1, gt=0)
    """CPUs reserved for a worker."""

    gpus_per_worker: int = Field(default=0, ge=0, le=1)
    """GPUs reserved for a worker: 0 or 1. This alone decides what the run trains on. With 0 every worker trains on its
    CPUs and sees no GPU, even if the machine has some. With 1 every worker trains on a GPU and tests it before data is
    prepared; a GPU that does not work ends the run with the reason (exit code 2), and no worker falls back to the CPU.
    A local cluster uses the GPUs that `CUDA_VISIBLE_DEVICES` names, or all of them if it is not set."""

    memory_per_worker: str | Annotated[int, Field(ge=1)] | None = None
    """Host memory reserved for a worker: bytes, or `4GiB`, `500MB`."""

    custom: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Custom Ray resources reserved for a worker, e.g. `{rack_a: 1}`."""

    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the workers, on every node, e.g. `{NCCL_SOCKET_IFNAME: eth0}`. They replace those of the
    node. Workers on GPUs also get the variables of the driver's environment that begin with `NCCL_`, `TORCH_NCCL_` or
    `PYTORCH_`; these take precedence. Variables that Convoy sets itself (ranks, device masks, NCCL's error handling)
    are refused. Not for secrets: they would be stored with the run."""

    placement: Literal["auto", "spread", "pack", "strict_spread", "strict_pack"] = "auto"
    """Ray placement strategy: over many nodes or few; the strict ones accept nothing else. `auto`: `pack` for workers
    on GPUs, which exchange gradients fastest within a node, and `spread` for workers on CPUs, so that the loss of a
    node costs the fewest workers."""

    standby: int = Field(default=0, ge=0, le=16)
    """Spare worker processes on each node that has workers: imported, idle, without a reservation of their own. If
    a worker's process on the node is lost, one of them takes its place at once; a new process would need seconds to
    start. Each takes a few hundred MB of host memory, and no GPU memory: it uses a GPU only when it takes over one."""

    placement_timeout_s: float = Field(default=60, gt=0)
    """Seconds to wait for the placement. Then the run ends with a message that says what is missing."""

    @property
    def strategy(self) -> str:
        """The placement, decided: never `auto`."""
        return self.placement if self.placement != "auto" else "pack" if self.gpus_per_worker else "spread"


class CheckpointSpec(SpecModel):
    """Where training state is kept: in the memory of the nodes and their peers, and as checkpoints on storage."""

    replicas: int = Field(default=1, ge=0)
    """Number of other nodes that keep a copy of each worker's state in memory, so that the loss of a node costs a step
    or two. With fewer nodes, as many as there are. A copy is never on the same node."""

    failure_domain: str | None = Field(default=None, min_length=1)
    """Node label whose value names what fails together. Copies go to nodes with another value, if there are any.
    Default: `rack`, or `zone` if the nodes do not differ in `rack`. `ray start --labels="rack=r7"` sets a label."""

    memory: bool = True
    """Keep state in memory. It takes twice the size of a worker's share of masters and moments, and the same again for
    each copy kept for a peer."""

    memory_interval_steps: int | None = Field(default=None, ge=1)
    """Copy state to memory every this many steps. Default: as often as `overhead_budget` allows."""

    overhead_budget: float = Field(default=0.02, gt=0, le=1)
    """Share of the step time that copies to memory may cost if no interval is given: one and a half times what they
    pause a worker for, since they slow down the steps around them too."""

    interval_steps: Annotated[int, Field(ge=1)] | Literal["auto", "never"] = "auto"
    """Write a checkpoint every this many steps. `auto`: the interval of Young and Daly that loses the least time, from
    the cost of a checkpoint and the failures so far; every two minutes at first. `never`: only at the end."""

    verify_restore: bool = False
    """After a restore, repeat a recorded step and compare its loss and gradient norm with the record. If they differ,
    the run continues from an older state, in the end from storage. Costs a step."""

    at_end: bool = True
    """Write a checkpoint after the last step."""

    keep_last: int = Field(default=2, ge=1)
    """How many of the newest checkpoints are kept."""

    keep_every: int | None = Field(default=None, ge=1)
    """Checkpoints of steps that are multiples of this are kept too, permanently."""

    keep_best: int | None = Field(default=None, ge=1)
    """This many with the lowest loss are kept too: by validation loss if it is measured at checkpoints, else by
    training loss."""

    storage: str | None = None
    """Absolute directory that all nodes share, or URL (`s3://`, `gs://`, `az://bucket/path`), that checkpoints are
    written to, each run in its own folder. Credentials come from the environment. Default: the run's directory."""


class PriceSpec(SpecModel):
    """What a worker or a node costs."""

    per: Literal["worker", "node"]
    """What is paid for: each reserved worker, or each node that has at least one."""

    usd: float = Field(ge=0, le=1_000_000)
    """US dollars per hour of it."""


class ClusterSpec(SpecModel):
    """A Ray cluster started for this run (`nodes`), or a running one (`address`)."""

    nodes: int | None = Field(default=None, ge=1, le=64)
    """Start a local cluster of this many nodes (raylets) on this machine. Default 1 without `address`."""

    cpus_per_node: float | None = Field(default=None, gt=0)
    """CPUs each local node offers to Ray. Default: enough for its share of the workers."""

    address: str | None = None
    """Address of a running Ray cluster: `host:6379`, or `auto` for the one on this machine."""

    usd_per_hour: Annotated[float, Field(ge=0, le=1_000_000)] | PriceSpec | None = None
    """Price in US dollars: of an hour of a worker, or `{per: node, usd: 3.20}` of an hour of a node that has workers,
    however many. Default: no costs are shown. `convoy goodput` and the metrics use it; it changes nothing else. With
    `--set` at a resume it applies to the whole run."""
