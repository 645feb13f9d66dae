"""`python -m tests.bench.simulated_workers`: the other ends of a driver at scale, in one process.

Workers connect to a driver's real receiver with the real protocol, send a heartbeat twice a second, and rank 0
pushes the report of a step at a pace that is read from stdin (`pace SECONDS`; 0: none). The others push figures of
their GPUs. Vaults answer surveys. The first line on stdin is JSON and says where and how many; stdout has the vaults'
addresses, and at `steps` what has been pushed.
"""

import json
import random
import resource
import select
import socket
import sys
import time
from collections.abc import Sequence

from orchestrator.checkpoint.memory.vault_server import VaultServer
from orchestrator.checkpoint.memory.wire import LENGTH, Channel, encode
from orchestrator.domain.events import Event, GpuMeasured
from orchestrator.domain.policy.hang import Phase
from orchestrator.domain.ranks.gpu_pace import reading_interval_s
from orchestrator.domain.ranks.rank_report import PhaseTimes, RankMemory, RankReport
from orchestrator.domain.ranks.rank_summary import every_rank_due, summarise
from orchestrator.domain.step_report import StepReport
from orchestrator.gang.agent.report_frames import BEAT_S, encode_batch
from orchestrator.gang.agent.report_queue import Heartbeat, ReportBatch
from orchestrator.json_values import JsonObject

STATE_BYTES = 3 << 30
LOOK_S = 0.005


def step_report(step: int, ranks: int, rng: random.Random, time_s: float) -> StepReport:
    """A step of a gang on GPUs, with numbers of as many digits as they have in practice."""
    reports = [
        RankReport(
            rank,
            8,
            16384 - rng.randrange(64),
            PhaseTimes(*(seconds * rng.uniform(0.95, 1.1) for seconds in (0.0004, 0.3, 0.6, 0.1)), 0.0, 0.001),
            RankMemory(
                *(base + rng.randrange(1 << 26) for base in (10**10, 10**10, 3 * 10**10, 4 * 10**10, 5 * 10**10))
            ),
        )
        for rank in range(ranks)
    ]
    return StepReport(
        step=step, time_s=time_s, epoch=step / 7001, loss=2.3 + rng.random(), grad_norm=rng.random(),
        lr=rng.random() / 1e3, tokens=16384 * ranks, target_tokens=16384 * ranks, samples=8 * ranks,
        first_position=step * 8 * ranks, data_digest=rng.getrandbits(62), step_time_s=1.0 + rng.random() / 100,
        tokens_per_s=16384.0 * ranks, tokens_per_s_per_worker=16384.0, tflops_per_s=1e5 + rng.random(),
        mfu=0.4 + rng.random() / 100, world_size=ranks, micro_batch=8, accumulation=1,
        ranks=summarise(reports, every_rank_due(step, ranks, step == 1)), protected_step=step - 1,
    )  # fmt: skip


def gpu_figures(rank: int, rng: random.Random) -> Event:
    """Of NVML, as an agent reads them."""
    used_bytes, watts = 10**10 + rng.randrange(1 << 36), 300 + 400 * rng.random()
    gpu = GpuMeasured(
        rank, f"host-{rank // 8}", f"GPU-{rng.getrandbits(128):032x}", "NVIDIA H100 80GB HBM3", rng.random(),
        used_bytes, 85899345920, watts, 63.0, ("power_cap",), 0, 0,
    )  # fmt: skip
    return Event(gpu, time.time())


class Worker:
    """One connection."""

    def __init__(self, rank: int, name: str, address: str, token: str, gpu_interval_s: float) -> None:
        self.rank, self.gpu_interval_s = rank, gpu_interval_s
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=30.0)
        Channel(self.socket)  # sets its options
        self.socket.sendall(encode({"token": token}, 0))
        self._answer()
        self.socket.sendall(encode({"worker": name}, 0))
        self.beat_due_s = time.monotonic() + BEAT_S * random.random()
        self.gpu_due_s = time.monotonic() + gpu_interval_s * random.random()
        self.number = self.confirmed = 0

    def send(self, step: int, item: StepReport | Event | None = None) -> None:
        """A heartbeat, maybe with a report or an event."""
        beat = Heartbeat(self.rank, step, Phase.FORWARD, 1, 0.1, 0, False, 1)
        self.number += item is not None
        batch = ReportBatch(beat) if item is None else ReportBatch(beat, self.number, (item,))
        self.socket.sendall(encode(encode_batch(batch), 0))

    def take_answer(self) -> bool:
        """Take the number of the batch that has been dealt with. False if the driver has hung up."""
        answer = self._answer()
        self.confirmed = json.loads(answer)["seen"] if answer else self.confirmed
        return bool(answer)

    def _answer(self) -> bytes:
        header = self.socket.recv(LENGTH.size, socket.MSG_WAITALL)
        return self.socket.recv(LENGTH.unpack(header)[0], socket.MSG_WAITALL) if len(header) == LENGTH.size else b""


def serve_vaults(nodes: int, per_node: int, token: str) -> list[VaultServer]:
    """Vaults whose nodes keep the state of their own ranks and of those of the node before, of two steps each."""
    return [VaultServer("127.0.0.1", token, _Inventory(node, nodes, per_node).handle) for node in range(nodes)]


class _Inventory:
    def __init__(self, node: int, nodes: int, per_node: int) -> None:
        ranks = [(node, True), ((node - 1) % nodes, False)]
        self._held = [
            {"generation": 1, "rank": owner * per_node + local, "world_size": nodes * per_node, "own": own,
             "step": step, "bytes": STATE_BYTES}
            for owner, own in ranks for local in range(per_node) for step in (9, 10)
        ]  # fmt: skip

    def handle(self, channel: Channel, frame: JsonObject) -> None:
        held: Sequence[JsonObject] = self._held if frame["do"] == "inventory" else ()
        channel.send({"held": held, "memory_bytes": STATE_BYTES * len(held), "problem": "", "generation": 1})


def main() -> None:
    """Serve until stdin ends."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asked = json.loads(sys.stdin.readline())
    vaults = serve_vaults(asked["nodes"], asked["ranks"] // asked["nodes"], asked["token"])
    gpu_interval_s = reading_interval_s(len(asked["names"]))
    workers = [
        Worker(rank, name, asked["address"], asked["token"], gpu_interval_s) for rank, name in enumerate(asked["names"])
    ]
    print(json.dumps({"vaults": [vault.address for vault in vaults]}), flush=True)
    serve(workers)


def serve(workers: list[Worker]) -> None:
    """Be all workers."""
    first, rng, pace_s, due_s, step, sent_s = workers[0], random.Random(1), 0.0, 0.0, 0, 0.0
    reports = [step_report(1, len(workers), rng, time.time())]
    latencies_s: list[float] = []
    while True:
        readable, _, _ = select.select([sys.stdin, first.socket], [], [], LOOK_S)
        now_s = time.monotonic()
        if first.socket in readable:
            if not first.take_answer():
                return
            latencies_s.append(now_s - sent_s)
        if sys.stdin in readable:
            words = sys.stdin.readline().split()
            if not words:
                return
            if words[0] == "pace":
                pace_s, due_s, latencies_s = float(words[1]), now_s, []
            else:
                print(json.dumps({"steps": step, "latencies_s": latencies_s}), flush=True)
        if pace_s and now_s >= due_s and first.confirmed == first.number:
            step, due_s, sent_s = step + 1, due_s + pace_s, now_s
            first.send(step, reports.pop())
            reports.append(step_report(step + 1, len(workers), rng, time.time()))
        for worker in workers:
            if now_s >= worker.beat_due_s:
                worker.beat_due_s += BEAT_S
                worker.send(step)
            if now_s >= worker.gpu_due_s and worker is not first:  # whose answers are those to its steps
                worker.gpu_due_s += worker.gpu_interval_s
                worker.send(step, gpu_figures(worker.rank, rng))


if __name__ == "__main__":
    main()
