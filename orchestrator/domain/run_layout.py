"""The paths of a run's files. Nothing here accesses the disk."""

from dataclasses import dataclass
from pathlib import Path

EXPORT_IN_WORK = ".export-"
"""How the name of a directory begins in which an export is put together."""


@dataclass(frozen=True)
class RunLayout:
    """The directory of one run."""

    root: Path

    @property
    def run_id(self) -> str:
        return self.root.name

    @property
    def spec(self) -> Path:
        """The resolved spec: overrides and variables applied."""
        return self.root / "spec.yaml"

    @property
    def steps(self) -> Path:
        return self.root / "steps.jsonl"

    @property
    def ranks(self) -> Path:
        """`ranks.jsonl`: the reports of every rank, of some steps or all."""
        return self.root / "ranks.jsonl"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def state(self) -> Path:
        """`run.json`: id, name, state, reason, times, pid of the driver, host."""
        return self.root / "run.json"

    @property
    def leases(self) -> Path:
        """A file for each driver: who may write."""
        return self.root / "leases"

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.json"

    @property
    def durability(self) -> Path:
        """`durability.json`: what the loss of a node would leave, as of the last survey of the vaults."""
        return self.root / "durability.json"

    @property
    def data(self) -> Path:
        """`data.json`: directory, fingerprint and counts of the prepared data."""
        return self.root / "data.json"

    @property
    def fingerprints(self) -> Path:
        """`fingerprints.json`: what the run was trained with, and each change that was accepted."""
        return self.root / "fingerprints.json"

    @property
    def contents(self) -> Path:
        """`contents.jsonl`: the files that the data was made from."""
        return self.root / "contents.jsonl"

    @property
    def tokenizer(self) -> Path:
        """The run's tokenizer: it keeps it, whatever becomes of the cache."""
        return self.root / "tokenizer"

    @property
    def skips(self) -> Path:
        """`skips.json`: which samples the run leaves out, when that was decided and why."""
        return self.root / "skips.json"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    def checkpoint_place(self, storage: str | None) -> str:
        """The place of the run's checkpoints: a directory or URL. `storage` is `checkpoint.storage` of its spec."""
        return f"{storage.rstrip('/')}/{self.run_id}" if storage is not None else str(self.checkpoints)

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}"

    @property
    def export(self) -> Path:
        return self.root / "export"

    def export_in_work(self, tag: str) -> Path:
        """Where an export is assembled before it is renamed to `export`. `tag`: of this attempt."""
        return self.root / f"{EXPORT_IN_WORK}{tag}"

    @property
    def report(self) -> Path:
        """`report.html`: all that is known about the run, written at its end."""
        return self.root / "report.html"

    @property
    def incidents(self) -> Path:
        """A page for each recovery."""
        return self.root / "incidents"

    def incident(self, number: int) -> Path:
        return self.incidents / f"incident-{number:03d}.md"

    def incident_stacks(self, number: int) -> Path:
        """`rank-N.txt` for each worker of a gang that hung."""
        return self.incidents / f"incident-{number:03d}-stacks"

    @property
    def scale_request(self) -> Path:
        """`scale-request.json`: the last request for another number of workers."""
        return self.root / "scale-request.json"

    @property
    def scale_answer(self) -> Path:
        """`scale-answer.json`: what the driver says to it."""
        return self.root / "scale-answer.json"

    @property
    def grant(self) -> Path:
        """`grant.json`: the newest grant of the server that drives the run."""
        return self.root / "grant.json"

    @property
    def grant_answer(self) -> Path:
        """`grant-answer.json`: what the driver says to it."""
        return self.root / "grant-answer.json"

    @property
    def driver(self) -> Path:
        """`driver.json`: the process that a server has started last to drive the run."""
        return self.root / "driver.json"

    @property
    def driver_report(self) -> Path:
        """`driver-report.json`: how far that process is, and how it ended."""
        return self.root / "driver-report.json"

    @property
    def driver_log(self) -> Path:
        """Output of drivers that a server has started."""
        return self.logs / "driver.log"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def log(self, rank: int) -> Path:
        return self.logs / f"rank-{rank}.log"
