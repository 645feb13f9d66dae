"""Submissions that the API takes: a real server in a process of its own, with the real queue on this machine's disk,
and clients that submit as fast as they get answers. Each submission is durable before it is answered."""

import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tests.bench.measure import Row, environment
from tests.bench.peer_processes import say
from tests.served_queue import ServedQueue, listening

CLIENTS = 8
WARM_UP = 50
SUBMISSIONS = 3000
LIMIT_S = 120.0
BAR_PER_S, BAR_P99_S = 200.0, 0.100


@dataclass
class Load:
    """One client: it submits until all have been submitted."""

    url: str
    secret: str
    job: str
    number: int
    took_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def run(self, count: int) -> None:
        parts = urlsplit(self.url)
        link = http.client.HTTPConnection(parts.hostname or "", parts.port or 0, timeout=30)
        headers = {"Authorization": f"Bearer {self.secret}", "Content-Type": "application/json"}
        for index in range(count):
            began_s = time.perf_counter()
            key = {"Idempotency-Key": f"{self.number}-{index}-{began_s}"}
            # Each has a spec of its own: nothing that the server remembers of the one before helps.
            spec = self.job.replace("lr: 1e-3", f"lr: {1e-3 + began_s * 1e-9:.15f}")
            link.request("POST", "/api/v1/runs", json.dumps({"spec": spec}), {**headers, **key})
            answer = link.getresponse()
            text = answer.read()
            self.took_s.append(time.perf_counter() - began_s)
            if answer.status != 201:
                self.failures.append(text[:200].decode(errors="replace"))
        link.close()


def serve(directory: Path) -> None:
    """The server's process: says where it is, and ends when its stdin does."""
    served = ServedQueue(directory / "home")
    with listening(served.app) as url:
        secrets = [served.secret(user=f"user-{number}") for number in range(CLIENTS)]
        print(json.dumps({"url": url, "secrets": secrets, "job": served.job()}), flush=True)
        sys.stdin.read()
    served.close()


def measure(scratch: Path) -> list[Row]:
    """Rate and latency."""
    command = [sys.executable, "-m", "tests.bench.api_submissions", str(scratch)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment())
    assert server.stdin is not None
    assert server.stdout is not None
    told = json.loads(server.stdout.readline())
    _submit(told, WARM_UP)
    began_s = time.perf_counter()
    loads = _submit(told, SUBMISSIONS)
    wall_s = time.perf_counter() - began_s
    server.stdin.close()
    server.wait(30)
    failures = [text for load in loads for text in load.failures]
    if failures:
        raise RuntimeError(f"{len(failures)} submissions failed: {failures[0]}")
    took_s = sorted(each for load in loads for each in load.took_s)
    p99_s, per_s = took_s[int(0.99 * len(took_s))], len(took_s) / wall_s
    say(f"{per_s:.0f} submissions/s, median {statistics.median(took_s) * 1e3:.1f} ms, p99 {p99_s * 1e3:.1f} ms")
    note = f"{len(took_s)} submissions of a small job by {CLIENTS} clients on the same machine"
    return [
        Row("submissions sustained by the API", f"{per_s:.0f}/s", "", None, f">= {BAR_PER_S:.0f}/s",
            per_s >= BAR_PER_S, note),
        Row("a submission, p99", f"{p99_s * 1e3:.0f} ms", "", None, f"< {BAR_P99_S * 1e3:.0f} ms", p99_s < BAR_P99_S),
    ]  # fmt: skip


def _submit(told: dict[str, object], count: int) -> list[Load]:
    secrets = told["secrets"]
    assert isinstance(secrets, list)
    loads = [Load(str(told["url"]), secret, str(told["job"]), number) for number, secret in enumerate(secrets)]
    threads = [threading.Thread(target=load.run, args=(count // CLIENTS,)) for load in loads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    return loads


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
