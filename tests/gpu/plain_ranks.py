"""Ranks in plain processes, without Ray: the product's worker behind two pipes, and a small driver for them."""

import contextlib
import multiprocessing
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from orchestrator.checkpoint.memory.vault import Vault
from orchestrator.checkpoint.memory.wire import Channel
from orchestrator.checkpoint.survey.inventory import WholeStep, newest_whole
from orchestrator.checkpoint.survey.surveyor import holdings
from orchestrator.domain.events import Event
from orchestrator.domain.session import Leave, PeerState, ShardPlace, TrainPlan, TrainResult, VaultAccess
from orchestrator.domain.step_report import StepReport
from orchestrator.gang.agent.ray_session import Assignment
from orchestrator.gang.agent.report_queue import Published, ReportBatch
from orchestrator.gang.agent.worker_actor import FileAccess, Raised, WorkerActor
from orchestrator.gang.file_transfer import write_marker

START_S = 120.0
POLL_S = 0.02
TOKEN = secrets.token_hex(16)
VAULT_BYTES = 8 << 30
TRAIN = "orchestrator.train.worker:run_worker"
Ended = TrainResult | Raised


class PlainWorker(WorkerActor):
    """The product's worker in a process that Ray did not start."""

    def __init__(self, env: dict[str, str], gpus: tuple[str, ...], output: Path) -> None:
        self._shown, self._output = gpus, output
        super().__init__(env, fate_share=True, one_host=True)

    def assigned_gpus(self) -> tuple[str, ...]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(self._shown)
        return self._shown

    def output_path(self) -> Path:
        return self._output


def serve(calls: Connection, agent: Connection, env: dict[str, str], gpus: tuple[str, ...], output: Path) -> None:
    """A rank's process: one generation after another, and beside them what the driver asks of the agent."""
    worker = PlainWorker(env, gpus, output)
    worker.warm(("orchestrator.train.worker", "torch", "deepspeed"))
    threading.Thread(target=_serve_agent, args=(agent, worker), daemon=True).start()
    calls.send("ready")
    while True:
        try:
            arguments = calls.recv()
        except EOFError:
            return
        calls.send(worker.run(*arguments))


def _serve_agent(agent: Connection, worker: WorkerActor) -> None:
    while True:
        try:
            method, arguments, answers = agent.recv()
        except EOFError:
            return
        if answers:
            agent.send(getattr(worker, method)(*arguments))
        else:
            threading.Thread(target=getattr(worker, method), args=arguments, daemon=True).start()


@dataclass
class Rank:
    """A process and what is known of it."""

    process: Any
    calls: Connection
    agent: Connection
    output: Path
    seen: int = 0
    running: bool = False
    ended: Ended | None = None
    steps: list[StepReport] = field(default_factory=list)
    """Of the present generation; of rank 0 alone."""
    events: list[Event] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        return bool(self.process.is_alive())

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of the agent that answers at once."""
        self.agent.send((method, arguments, True))
        return self.agent.recv()

    def tell(self, method: str, *arguments: Any) -> None:
        """Call a method of the agent that may take long; its answer is of no interest."""
        self.agent.send((method, arguments, False))


class Ranks:
    """Processes that form generations of any size, each with a vault of its own in this process, as on its own node."""

    def __init__(
        self, count: int, env: Mapping[str, str], gpus: tuple[str, ...], directory: Path, context: Any = None
    ) -> None:
        """`gpus`: what every process sees. `context`: of multiprocessing; default: processes that import everything."""
        self._context = context or multiprocessing.get_context("spawn")
        self._env, self._gpus, self._directory = dict(env), gpus, directory
        self.generation = 0
        self.vaults = [Vault("127.0.0.1", TOKEN, lambda: VAULT_BYTES) for _ in range(count)]
        self.ranks: list[Rank] = [self._start(index) for index in range(count)]
        for rank in self.ranks:
            assert rank.calls.poll(START_S), f"a process did not start within {START_S:.0f} s"
            rank.calls.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for rank in self.ranks:
            rank.process.kill()
            rank.process.join()
        for vault in self.vaults:
            vault.close()

    def _start(self, index: int) -> Rank:
        calls, their_calls = self._context.Pipe()
        agent, their_agent = self._context.Pipe()
        output = self._directory / f"rank-{index}-{secrets.token_hex(3)}.log"
        # Two ranks on one GPU: NCCL takes them for ranks of two hosts.
        env = {**self._env, "NCCL_HOSTID": f"host-{index}"}
        process = self._context.Process(
            target=serve, args=(their_calls, their_agent, env, self._gpus, output), daemon=True
        )
        process.start()
        their_calls.close()
        their_agent.close()
        return Rank(process, calls, agent, output)

    def begin(self, plan: TrainPlan, members: Sequence[int] | None = None, entry: str = TRAIN) -> None:
        """Have some processes (default: all) run an entry point as a new generation. Does not wait."""
        chosen = [self.ranks[index] for index in (members if members is not None else range(len(self.ranks)))]
        self.members = chosen
        self.generation += 1
        run_dir = Path(plan.run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        marker, word = write_marker(run_dir)
        access = FileAccess(None, str(marker), word, f"gpu-{os.getpid()}")
        vaults = [self.vaults[self.ranks.index(rank)] for rank in chosen]
        for vault, peer in zip(vaults, [*vaults[1:], vaults[0]], strict=True):
            addresses = [peer.address] if peer is not vault else []
            _ask(vault, {"do": "peers", "generation": self.generation, "addresses": addresses})
        for number, rank in enumerate(chosen):
            rank.running, rank.ended = True, None
            rank.steps, rank.events = [], []
            vault_access = VaultAccess(vaults[number].address, os.getpid(), TOKEN, self.generation, "gpu")
            assignment = Assignment(number, len(chosen), 0, "127.0.0.1", self.generation, vault_access)
            rank.calls.send((entry, plan, assignment, access))

    def pump(self, until: Callable[[], bool], limit_s: float) -> None:
        """Take what ranks say until something is true. Raises TimeoutError with the last output of all ranks."""
        deadline_s = time.monotonic() + limit_s
        while not until():
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"not within {limit_s:.0f} s\n{self.story()}")
            for rank in self.members:
                self._listen(rank)

    def run(
        self, plan: TrainPlan, members: Sequence[int] | None = None, entry: str = TRAIN, limit_s: float = 120.0
    ) -> list[Ended]:
        """`begin`, and wait until all have ended: results by rank. Raises RuntimeError if a process died."""
        self.begin(plan, members, entry)
        self.pump(lambda: all(not rank.running for rank in self.members), limit_s)
        ended = [rank.ended for rank in self.members]
        if any(each is None for each in ended):
            raise RuntimeError(f"a process died\n{self.story()}")
        return [each for each in ended if each is not None]

    def train(self, plan: TrainPlan, members: Sequence[int] | None = None, limit_s: float = 120.0) -> list[StepReport]:
        """Train to the end: the reports of all steps. Raises RuntimeError if a rank raised."""
        for ended in self.run(plan, members, TRAIN, limit_s):
            if isinstance(ended, Raised):
                raise RuntimeError(f"rank {ended.rank}: {ended.traceback_text}")
        return self.steps

    @property
    def steps(self) -> list[StepReport]:
        """Reports of this generation."""
        return self.members[0].steps

    def interrupt(self, lost: Sequence[int], patience_s: float) -> float:
        """Interrupt all ranks that run but the lost ones, as the driver does; seconds until they have ended. Ranks that
        do not end are left running. `lost`: places in this generation."""
        started_s = time.monotonic()
        for index in lost:
            self.members[index].running = False
        survivors = [rank for rank in self.members if rank.running and rank.alive]
        for rank in survivors:
            rank.tell("interrupt", self.generation, patience_s)
        with contextlib.suppress(TimeoutError):
            self.pump(lambda: not any(rank.running for rank in survivors), patience_s)
        return time.monotonic() - started_s

    def newest(self) -> PeerState:
        """The newest step that the vaults hold whole. Raises LookupError if there is none."""
        held = [each for vault in self.vaults for each in holdings(vault.address, _ask(vault, {"do": "inventory"}))]
        whole: WholeStep | None = newest_whole(held)
        if whole is None:
            raise LookupError(f"the vaults hold nothing whole: {held}")
        shards = tuple(ShardPlace(rank, places) for rank, places in enumerate(whole.places))
        return PeerState(whole.generation, whole.step, shards)

    def leave(self) -> None:
        """Ask all ranks to stop at the next step boundary."""
        for rank in self.members:
            rank.ask("notify", self.generation, {}, Leave.STOP)

    def story(self) -> str:
        """What ranks printed and said last, for a check that fails."""
        parts = []
        for number, rank in enumerate(self.members):
            text = rank.output.read_text(errors="replace")[-1500:] if rank.output.exists() else ""
            state = "runs" if rank.running else f"ended: {rank.ended}"
            parts.append(f"rank {number} (process {rank.process.pid}, alive: {rank.alive}) {str(state)[:3000]}\n{text}")
        return "\n".join(parts)

    def _listen(self, rank: Rank) -> None:
        if not rank.running:
            return
        if not rank.alive:
            rank.running = False
            return
        with contextlib.suppress(EOFError, OSError):
            self._take(rank, rank.ask("poll", POLL_S, rank.seen))
            if rank.calls.poll():
                rank.ended = rank.calls.recv()
                self._take(rank, rank.ask("poll", 0.0, rank.seen))
                rank.running = False

    def _take(self, rank: Rank, batch: ReportBatch) -> None:
        if batch.number <= rank.seen:
            return
        rank.seen = batch.number
        rank.lines.extend(batch.lines)
        for item in batch.items:
            if isinstance(item, StepReport):
                rank.steps.append(item)
            elif isinstance(item, Event):
                rank.events.append(item)
            elif isinstance(item, Published):
                for other in self.members:
                    if other is not rank and other.running:
                        other.ask("notify", self.generation, {item.key: item.value}, Leave.NO)


def _ask(vault: Vault, frame: dict[str, Any]) -> dict[str, Any]:
    with contextlib.closing(Channel.connect(vault.address, TOKEN, 5.0)) as channel:
        answer, _ = channel.ask(frame)
        return dict(answer)


def resumed(plan: TrainPlan, state: PeerState, shares: tuple[int, ...]) -> TrainPlan:
    """The plan of the next generation: from a state in the vaults, with these shares of the global batch."""
    micro = min(plan.micro_batch, shares[0])
    return replace(plan, peer_state=state, shares=shares, micro_batch=micro, accumulation=-(-shares[0] // micro))
