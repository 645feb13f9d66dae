"""What it costs a step that Prometheus scrapes the run once a second.

Runs differ from one another by more than the half percent in question, neighbouring steps of one run do not. So the
cost of a scrape is by how much a step in which one began is longer than the steps before and after it, which have none:
the median over all such steps, paid once a second. Everything but the scraping process counts: the driver runs on the
cores of the workers.
"""

import contextlib
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.domain.events import Event, MetricsServing
from orchestrator.domain.step_report import StepReport
from tests.bench.course import MODEL_4M, Course, train
from tests.bench.head_and_nodes import head_and_nodes
from tests.bench.measure import Row, environment
from tests.bench.peer_processes import say
from tests.bench.scraper import INTERVAL_S

WORKERS, STAGE = 2, 1
WARM_UP_STEPS = 20
SCRAPED_S = 150.0
LIMIT_S = 400.0
PAID_EVERY_S = 1.0
"""The bar is for a scrape every second."""
LEAST_PAIRS = 40
BAR = 0.005


@dataclass(frozen=True)
class Scrape:
    """One of them."""

    began_s: float
    """Unix time."""
    took_s: float
    size_bytes: int


class ScrapedCourse(Course):
    """Has a run scraped from its first warm step on for `SCRAPED_S`, and stops it then."""

    def __init__(self) -> None:
        super().__init__()
        self._url = ""
        self._scraper: subprocess.Popen[str] | None = None
        self._since_s = 0.0
        self.scrapes: list[Scrape] = []

    def on_event(self, event: Event) -> None:
        super().on_event(event)
        if isinstance(event.body, MetricsServing):
            self._url = event.body.url

    def on_step(self, report: StepReport) -> None:
        super().on_step(report)
        if len(self.steps) == WARM_UP_STEPS:
            command = [sys.executable, "-m", "tests.bench.scraper", self._url]
            pipe = subprocess.PIPE
            self._since_s = report.time_s
            self._scraper = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment())
        if len(self.steps) > WARM_UP_STEPS and report.time_s - self._since_s >= SCRAPED_S:
            self.end()
            self.over.set()

    def end(self) -> None:
        """Idempotent."""
        scraper, self._scraper = self._scraper, None
        if scraper is not None:
            output, _ = scraper.communicate(timeout=20.0)
            self.scrapes = [Scrape(*each) for each in json.loads(output)]


@dataclass(frozen=True)
class Cost:
    """Of one scrape, in step time."""

    seconds: float
    error_s: float
    """Its standard error."""
    count: int
    step_s: float
    """Of a step, in the median."""


def cost_of(ends_s: Sequence[float], scrapes: Sequence[Scrape]) -> Cost:
    """From the Unix times at which steps ended. Raises ValueError if too few steps are between two without a scrape."""
    lengths_s = [b - a for a, b in itertools.pairwise(ends_s)]
    struck = {bisect_left(ends_s, scrape.began_s) - 1 for scrape in scrapes}
    lone = [i for i in struck if 0 < i < len(lengths_s) - 1 and not {i - 1, i + 1} & struck]
    found = [lengths_s[i] - (lengths_s[i - 1] + lengths_s[i + 1]) / 2 for i in lone]
    if len(found) < LEAST_PAIRS:
        raise ValueError(f"{len(found)} steps with a scrape stand between steps without: fewer than {LEAST_PAIRS}")
    quarters = statistics.quantiles(found, n=4)
    # Of a median, from the distance of the quartiles, 1.35 deviations of a normal distribution.
    error_s = 1.253 * (quarters[2] - quarters[0]) / 1.349 / math.sqrt(len(found))
    return Cost(statistics.median(found), error_s, len(found), statistics.median(lengths_s))


def measure(scratch: Path) -> list[Row]:
    say(f"Convoy, ZeRO-{STAGE}, {WORKERS} workers, scraped every {INTERVAL_S:g} s")
    course = ScrapedCourse()
    with (
        head_and_nodes(WORKERS) as cluster,
        tempfile.TemporaryDirectory(dir=scratch) as directory,
        contextlib.ExitStack() as ending,
    ):
        ending.callback(course.end)
        train(
            Path(directory),
            cluster.address,
            course,
            MODEL_4M,
            LIMIT_S,
            zero={"stage": STAGE},
            resources={"workers": WORKERS},
            checkpoint={"interval_steps": "never", "at_end": False, "memory_interval_steps": 10**6},
            metrics={"port": 0},
        )
    cost = cost_of([step.time_s for step in course.steps[WARM_UP_STEPS:]], course.scrapes)
    share, error = cost.seconds / PAID_EVERY_S, cost.error_s / PAID_EVERY_S
    size_kb = statistics.median(scrape.size_bytes for scrape in course.scrapes) / 1000
    took_ms = statistics.median(scrape.took_s for scrape in course.scrapes) * 1000
    name = f"ZeRO-{STAGE}, {WORKERS} workers"
    how = (
        f"{cost.seconds * 1000:.2f} ms of a step of {cost.step_s * 1000:.0f} ms for each scrape (standard error "
        f"{cost.error_s * 1000:.2f}, of {cost.count}); answered after {took_ms:.0f} ms, {size_kb:.0f} KB"
    )
    return [
        Row(f"cost of a scrape every second, {name}", f"{share:.2%} of step time (±{error:.2%})", "", None,
            f"<= {BAR:.1%}", share <= BAR, how)
    ]  # fmt: skip
