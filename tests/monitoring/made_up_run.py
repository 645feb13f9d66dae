"""What a run on this machine cannot have: GPUs, fp16, a lack of workers, and the exporters of hosts and GPUs.

The figures are made up, and go through the real observer of a run's metrics and its real endpoint.
"""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from orchestrator.domain.events import (
    Event,
    GangWaiting,
    GpuMeasured,
    MemoryMeasured,
    RunState,
    StateChanged,
    TrainingPlanned,
    WorkerStarted,
)
from orchestrator.domain.ranks.rank_report import PhaseTimes, RankMemory, RankReport
from orchestrator.domain.ranks.rank_summary import summarise
from orchestrator.domain.step_report import StepReport
from orchestrator.metrics.exporter import MetricsObserver
from orchestrator.metrics.metrics_endpoint import MetricsServer
from tests.events import event
from tests.unit.goodput.test_ledger_result import RESULT

RUN, JOB = "gpus-1", "gpus"
RANKS = 4
GIB = 2**30
HOSTS = ("host-a", "host-b")


def made_up_observer() -> MetricsObserver:
    """Of a run with four GPUs on two hosts, one of them hot, that has just lost a worker."""
    ratios = dict.fromkeys(range(RANKS), 1.0)
    observer = MetricsObserver(RUN, JOB, lambda: RESULT, slowness=lambda: ratios)
    observer.on_event(event(TrainingPlanned, total_steps=1000, world_size=RANKS))
    observer.on_event(event(StateChanged, state=RunState.RUNNING))
    parts = {"parameters": 14 * GIB, "gradients": 14 * GIB, "optimizer": 21 * GIB, "activations": 9 * GIB}
    observer.on_event(Event(MemoryMeasured(parts, parts), 1.0))
    for rank in range(RANKS):
        host = HOSTS[rank // 2]
        observer.on_event(event(WorkerStarted, rank=rank, host=host, node_id=f"node-{host}"))
    train_on(observer, 10, random.Random(7))
    observer.on_event(event(GangWaiting, need=4, have=3))
    return observer


def train_on(observer: MetricsObserver, step: int, noise: random.Random) -> None:
    """The next step, and what NVML says of the GPUs in it."""
    for rank in range(RANKS):
        observer.on_event(Event(gpu(rank, noise), time.time()))
    observer.on_step(step_on_gpus(step, noise))


def train_until(observer: MetricsObserver, ended: threading.Event) -> None:
    """A step each second."""
    noise, step = random.Random(11), 11
    while not ended.wait(1.0):
        train_on(observer, step, noise)
        step += 1


def gpu(rank: int, noise: random.Random) -> GpuMeasured:
    """The last one is hot, and its clocks are held down."""
    hot = rank == RANKS - 1
    return GpuMeasured(
        rank=rank,
        host=HOSTS[rank // 2],
        uuid=f"GPU-{rank:04d}",
        name="NVIDIA H100 80GB HBM3",
        utilization=noise.gauss(0.95, 0.01),
        memory_used_bytes=61 * GIB + noise.randrange(GIB),
        memory_total_bytes=80 * GIB,
        power_watts=noise.gauss(560.0 if hot else 640.0, 8.0),
        temperature_celsius=noise.gauss(86.0 if hot else 66.0 + rank, 0.7),
        throttled=("thermal",) if hot else (),
        ecc_corrected=3,
        ecc_uncorrected=0,
    )


def step_on_gpus(step: int, noise: random.Random) -> StepReport:
    """In fp16."""
    slow = noise.gauss(1.0, 0.01)
    phases = PhaseTimes(data_wait_s=0.01, forward_s=0.2 * slow, backward_s=0.4 * slow, optimizer_s=0.1)
    memory = RankMemory(4 * GIB, 5 * GIB, 50 * GIB, 62 * GIB, 58 * GIB)
    ranks = tuple(RankReport(rank, 8, 16384, phases, memory) for rank in range(RANKS))
    return StepReport(
        step=step, time_s=time.time(), epoch=0.1, loss=3.0, grad_norm=0.9, lr=3e-4, tokens=65536, target_tokens=65000,
        samples=32, first_position=0, data_digest=7, step_time_s=0.7 * slow, tokens_per_s=93000.0 / slow,
        tokens_per_s_per_worker=23000.0 / slow, tflops_per_s=1600.0 / slow, mfu=0.41 / slow, world_size=RANKS,
        micro_batch=8, accumulation=1, ranks=summarise(ranks), loss_scale=65536.0, skipped=False,
    )  # fmt: skip


def exporters_text(noise: random.Random) -> str:
    """What node_exporter and dcgm-exporter say of the hosts."""
    lines, now_s = [], time.monotonic()
    for host in HOSTS:
        at = f'instance="{host}:9100"'
        lines += [
            f'node_uname_info{{{at},nodename="{host}"}} 1',
            f'node_network_transmit_bytes_total{{{at},device="eth0"}} {now_s * 2.1e9:.0f}',
            f'node_cpu_seconds_total{{{at},cpu="0",mode="idle"}} {now_s * 0.7:.3f}',
            f"node_memory_MemTotal_bytes{{{at}}} 1e12",
            f"node_memory_MemAvailable_bytes{{{at}}} 4e11",
        ]
    busy = {rank: noise.gauss(0.47, 0.01) for rank in range(RANKS)}
    lines += [f'DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{{UUID="GPU-{rank:04d}"}} {share:.4f}' for rank, share in busy.items()]
    return "\n".join(lines) + "\n"


@contextmanager
def made_up_endpoints() -> Iterator[tuple[str, str]]:
    """Addresses of the endpoint of a run that makes a step each second, and of the exporters."""
    observer, ended = made_up_observer(), threading.Event()
    training = threading.Thread(target=train_until, args=(observer, ended), daemon=True)
    training.start()
    run = MetricsServer(observer.registry, "127.0.0.1", 0, None)
    exporters = ThreadingHTTPServer(("127.0.0.1", 0), _Exporters)
    thread = threading.Thread(target=exporters.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield run.url.removeprefix("http://").removesuffix("/metrics"), f"127.0.0.1:{exporters.server_port}"
    finally:
        ended.set()
        training.join(5)
        run.close()
        exporters.shutdown()
        exporters.server_close()
        thread.join(5)


class _Exporters(BaseHTTPRequestHandler):
    noise = random.Random(7)

    def do_GET(self) -> None:
        body = exporters_text(self.noise).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are not news."""
