"""The exchange between ranks once per step: one small vector of numbers, gathered to all."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.distributed as dist

from orchestrator.data.samples.dataset import DIGEST_BITS
from orchestrator.domain.ranks.rank_report import CollectiveTimes, PhaseTimes, RankMemory, RankReport
from orchestrator.domain.session import Leave
from orchestrator.json_values import JsonObject, parse_object

# A double holds 53 bits exactly: a digest travels in two halves.
_HALF_BITS = DIGEST_BITS // 2
_ABSENT = -1.0


class _Row(NamedTuple):
    """A rank's facts as they travel: doubles, in this order."""

    loss_sum: float
    targets: float
    tokens: float
    samples: float
    digest_high: float
    digest_low: float
    data_wait_s: float
    forward_s: float
    backward_s: float
    optimizer_s: float
    snapshot_s: float
    rss_bytes: float
    peak_rss_bytes: float
    allocated_bytes: float
    reserved_bytes: float
    peak_allocated_bytes: float
    leave: float
    save: float
    replicated_step: float
    step_s: float
    targets_ahead: float
    forward_wait_s: float
    backward_wait_s: float
    optimizer_wait_s: float
    positions: float


@dataclass(frozen=True)
class RankStep:
    """One rank's facts of one step."""

    loss_sum: float
    targets: int
    tokens: int
    samples: int
    digest: int
    phases: PhaseTimes
    memory: RankMemory
    leave: Leave
    """What this rank was asked."""
    save: bool
    """This rank was asked to have a checkpoint written."""
    replicated_step: int
    """The newest step of this rank whose state lies in every vault it should lie in; -1: none; -2: no vault yet."""
    step_s: float
    """This rank's own time of the step so far."""
    targets_ahead: int
    """Targets that this rank feeds in the next step; -1: they are not known yet."""
    waits: CollectiveTimes = field(default_factory=CollectiveTimes)
    positions: int = 0
    """Positions that this rank computed, padding included."""

    def pack(self) -> list[float]:
        """As doubles, all exact but the seconds and the loss, which are doubles anyway."""
        high, low = divmod(self.digest, 1 << _HALF_BITS)
        phases, memory, waits = self.phases, self.memory, self.waits
        row = _Row(
            loss_sum=self.loss_sum,
            targets=self.targets,
            tokens=self.tokens,
            samples=self.samples,
            digest_high=high,
            digest_low=low,
            data_wait_s=phases.data_wait_s,
            forward_s=phases.forward_s,
            backward_s=phases.backward_s,
            optimizer_s=phases.optimizer_s,
            snapshot_s=phases.snapshot_s,
            rss_bytes=memory.rss_bytes,
            peak_rss_bytes=memory.peak_rss_bytes,
            allocated_bytes=_packed(memory.allocated_bytes),
            reserved_bytes=_packed(memory.reserved_bytes),
            peak_allocated_bytes=_packed(memory.peak_allocated_bytes),
            leave=self.leave,
            save=self.save,
            replicated_step=self.replicated_step,
            step_s=self.step_s,
            targets_ahead=self.targets_ahead,
            forward_wait_s=waits.forward_s,
            backward_wait_s=waits.backward_s,
            optimizer_wait_s=waits.optimizer_s,
            positions=self.positions,
        )
        return [float(value) for value in row]

    @classmethod
    def unpack(cls, values: list[float]) -> "RankStep":
        """The reverse of `pack`."""
        row = _Row(*values)
        return cls(
            loss_sum=row.loss_sum,
            targets=int(row.targets),
            tokens=int(row.tokens),
            samples=int(row.samples),
            digest=(int(row.digest_high) << _HALF_BITS) + int(row.digest_low),
            phases=PhaseTimes(
                data_wait_s=row.data_wait_s,
                forward_s=row.forward_s,
                backward_s=row.backward_s,
                optimizer_s=row.optimizer_s,
                snapshot_s=row.snapshot_s,
            ),
            memory=RankMemory(
                rss_bytes=int(row.rss_bytes),
                peak_rss_bytes=int(row.peak_rss_bytes),
                allocated_bytes=_unpacked(row.allocated_bytes),
                reserved_bytes=_unpacked(row.reserved_bytes),
                peak_allocated_bytes=_unpacked(row.peak_allocated_bytes),
            ),
            leave=Leave(int(row.leave)),
            save=bool(row.save),
            replicated_step=int(row.replicated_step),
            step_s=row.step_s,
            targets_ahead=int(row.targets_ahead),
            waits=CollectiveTimes(row.forward_wait_s, row.backward_wait_s, row.optimizer_wait_s),
            positions=int(row.positions),
        )

    def report(self, rank: int, checkpoint_s: float) -> RankReport:
        """The part of the step's report that is this rank's own."""
        p = self.phases
        phases = PhaseTimes(p.data_wait_s, p.forward_s, p.backward_s, p.optimizer_s, checkpoint_s, p.snapshot_s)
        return RankReport(rank, self.samples, self.tokens, phases, self.memory, self.waits)


def _packed(value: int | None) -> float:
    return _ABSENT if value is None else value


def _unpacked(value: float) -> int | None:
    return None if value == _ABSENT else int(value)


def exchange(own: RankStep, device: torch.device) -> list[list[float]]:
    """Every rank's facts, packed, by rank, on every rank. Collective.

    To be unpacked when it is certain that the collective was not aborted: one of NCCL's that was ends without an error,
    and leaves numbers that `RankStep.unpack` may not be able to read.
    """
    world_size = dist.get_world_size()
    if world_size == 1:
        return [own.pack()]
    vector = _on_device(own.pack(), device)
    gathered = torch.empty(world_size * vector.numel(), dtype=torch.float64, device=device)
    dist.all_gather_into_tensor(gathered, vector)
    rows: list[list[float]] = gathered.view(world_size, -1).tolist()
    return rows


def _on_device(values: list[float], device: torch.device) -> torch.Tensor:
    """float64[n]. On a GPU without waiting for what it has to do before: a copy of pageable memory would."""
    if device.type != "cuda":
        return torch.tensor(values, dtype=torch.float64)
    return torch.tensor(values, dtype=torch.float64, pin_memory=True).to(device, non_blocking=True)


def read_numbers(values: Sequence[torch.Tensor | float], device: torch.device) -> list[float]:
    """Scalars on the host, with one transfer from `device`. Waits for all that it was given to do."""
    there = [each for each in values if isinstance(each, torch.Tensor) and each.device == device]
    read = iter(torch.stack([each.detach().double().reshape(()) for each in there]).tolist() if there else ())
    return [next(read) if isinstance(each, torch.Tensor) and each.device == device else float(each) for each in values]


def global_min(value: int, device: torch.device) -> int:
    """Least of an integer over the ranks. Collective."""
    if dist.get_world_size() == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.int64, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
    return int(tensor)


def global_sum(value: int, device: torch.device) -> int:
    """Sum of an integer over the ranks. Collective."""
    if dist.get_world_size() == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.int64, device=device)
    dist.all_reduce(tensor)
    return int(tensor)


def exchange_json(value: Mapping[str, object]) -> list[JsonObject]:
    """Every rank's small JSON value, in rank order. Collective; nothing is unpickled."""
    device = torch.device("cpu")
    if dist.get_backend() == "nccl":
        device = torch.device("cuda", torch.cuda.current_device())
    mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([mine.numel()], dtype=torch.int64, device=device))
    longest = max(int(size) for size in sizes)
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: mine.numel()] = mine
    every = [torch.zeros_like(padded) for _ in sizes]
    dist.all_gather(every, padded)
    return [parse_object(bytes(raw[: int(size)].cpu().numpy())) for raw, size in zip(every, sizes, strict=True)]
