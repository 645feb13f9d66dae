"""The exchange between ranks once per step: one small vector of numbers, gathered to all."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from orchestrator.domain.session import Leave
from orchestrator.domain.step_report import CollectiveTimes, PhaseTimes, RankMemory, RankReport

# A digest has 62 bits and a double holds 53: it travels in two exact halves.
_HALF_BITS = 31
DIGEST_MODULUS = 1 << (2 * _HALF_BITS)
_ABSENT = -1.0


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

    def pack(self) -> list[float]:
        """As doubles, all exact but the seconds and the loss, which are doubles anyway."""
        high, low = divmod(self.digest, 1 << _HALF_BITS)
        phases, memory = self.phases, self.memory
        device = (memory.allocated_bytes, memory.reserved_bytes, memory.peak_allocated_bytes)
        return [
            self.loss_sum,
            self.targets,
            self.tokens,
            self.samples,
            high,
            low,
            phases.data_wait_s,
            phases.forward_s,
            phases.backward_s,
            phases.optimizer_s,
            memory.rss_bytes,
            memory.peak_rss_bytes,
            *(_ABSENT if value is None else value for value in device),
            float(self.leave),
            float(self.replicated_step),
            self.step_s,
            phases.snapshot_s,
            self.waits.forward_s,
            self.waits.backward_s,
            self.waits.optimizer_s,
            float(self.save),
            self.targets_ahead,
        ]

    @classmethod
    def unpack(cls, values: list[float]) -> "RankStep":
        """The reverse of `pack`."""
        device = [None if value == _ABSENT else int(value) for value in values[12:15]]
        return cls(
            loss_sum=values[0],
            targets=int(values[1]),
            tokens=int(values[2]),
            samples=int(values[3]),
            digest=(int(values[4]) << _HALF_BITS) + int(values[5]),
            phases=PhaseTimes(values[6], values[7], values[8], values[9], 0.0, values[18]),
            memory=RankMemory(int(values[10]), int(values[11]), *device),
            leave=Leave(int(values[15])),
            save=bool(values[22]),
            replicated_step=int(values[16]),
            step_s=values[17],
            targets_ahead=int(values[23]),
            waits=CollectiveTimes(*values[19:22]),
        )

    def report(self, rank: int, checkpoint_s: float) -> RankReport:
        """The part of the step's report that is this rank's own."""
        p = self.phases
        phases = PhaseTimes(p.data_wait_s, p.forward_s, p.backward_s, p.optimizer_s, checkpoint_s, p.snapshot_s)
        return RankReport(rank, self.samples, self.tokens, phases, self.memory, self.waits)


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


def exchange_json(value: dict[str, Any]) -> list[dict[str, Any]]:
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
    return [json.loads(bytes(raw[: int(size)].cpu().numpy())) for raw, size in zip(every, sizes, strict=True)]
