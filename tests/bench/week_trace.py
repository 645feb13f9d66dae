"""A week of jobs with the shape of Microsoft's Philly trace.

Run times and widths are those that Gavel samples "from the Philly distribution" (Narayanan et al., "Heterogeneity-Aware
Cluster Scheduling Policies for Deep Learning Workloads", OSDI 2020; `_generate_duration` and `_generate_scale_factor`
in the code of stanford-futuredata/gavel), after the analysis of that trace: Jeon et al., "Analysis of Large-Scale
Multi-Tenant GPU Clusters for DNN Training Workloads", USENIX ATC 2019. Of the jobs, 70% have one GPU, 10% two, 15% four
and 5% eight; 80% run for 10^x minutes with x uniform from 1.5 to 3, the others with x from 3 to 4. Arrivals are a
Poisson process, as there.

Ours: the widest 5% are divided into 8 and 16 GPUs (3.5 and 1.5%), since Jeon et al. have a class of more than eight;
run times above `LONGEST_S` are cut, so that a week is longer than the longest job; 15% have a higher priority; an
elastic job can use a quarter to four times its GPUs, and its speed is in proportion.
"""

import random
from dataclasses import dataclass

WEEK_S = 7 * 86_400.0
WIDTHS, WIDTH_SHARES = (1, 2, 4, 8, 16), (70.0, 10.0, 15.0, 3.5, 1.5)
LONG_SHARE = 0.2
LONGEST_S = 2 * 86_400.0
URGENT_SHARE = 0.15
URGENT = 10


@dataclass(frozen=True)
class WeekJob:
    """One submission."""

    name: str
    submitted_s: float
    """Since the begin of the week."""
    width: int
    """GPUs."""
    runtime_s: float
    """With these."""
    priority: int
    elastic: bool

    @property
    def work_s(self) -> float:
        """GPU-seconds."""
        return self.width * self.runtime_s


def _runtime_s(rng: random.Random) -> float:
    low, high = (3.0, 4.0) if rng.random() < LONG_SHARE else (1.5, 3.0)
    return min(60.0 * 10 ** rng.uniform(low, high), LONGEST_S)


def week_of(seed: int, gpus: int, load: float, elastic_share: float) -> list[WeekJob]:
    """Jobs with `load` times the work that the cluster can do in a week. A seed's jobs are the same at each share."""
    rng = random.Random(seed)
    jobs: list[WeekJob] = []
    work_s = 0.0
    while work_s < load * gpus * WEEK_S:
        job = WeekJob(
            f"job-{len(jobs):04}", rng.uniform(0.0, WEEK_S), rng.choices(WIDTHS, WIDTH_SHARES)[0], _runtime_s(rng),
            URGENT if rng.random() < URGENT_SHARE else 0, rng.random() < elastic_share,
        )  # fmt: skip
        jobs.append(job)
        work_s += job.work_s
    # Given their number, the arrivals of a Poisson process are uniform.
    return sorted(jobs, key=lambda job: job.submitted_s)
