"""What ranks tell each other once a step: one small vector of numbers, gathered to all."""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from orchestrator.domain.report import PhaseTimes, RankMemory, RankReport

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
    stop: bool
    """This rank was asked to stop."""

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
            float(self.stop),
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
            phases=PhaseTimes(*values[6:10]),
            memory=RankMemory(int(values[10]), int(values[11]), *device),
            stop=bool(values[15]),
        )

    def report(self, rank: int, checkpoint_s: float) -> RankReport:
        """The part of the step's report that is this rank's own."""
        p = self.phases
        phases = PhaseTimes(p.data_wait_s, p.forward_s, p.backward_s, p.optimizer_s, checkpoint_s)
        return RankReport(rank, self.samples, self.tokens, phases, self.memory)


def exchange(own: RankStep, device: torch.device) -> list[RankStep]:
    """Every rank's facts, by rank, on every rank. Collective."""
    world_size = dist.get_world_size()
    if world_size == 1:
        return [own]
    vector = torch.tensor(own.pack(), dtype=torch.float64, device=device)
    gathered = torch.empty(world_size * vector.numel(), dtype=torch.float64, device=device)
    dist.all_gather_into_tensor(gathered, vector)
    return [RankStep.unpack(row) for row in gathered.view(world_size, -1).tolist()]


def global_sum(value: int, device: torch.device) -> int:
    """Sum of an integer over the ranks. Collective."""
    if dist.get_world_size() == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.int64, device=device)
    dist.all_reduce(tensor)
    return int(tensor)
