"""What the parts of the run controller share: one run, and how to report about it."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.atomic_files import read_json
from orchestrator.domain.errors import UsageError
from orchestrator.domain.events import EventBody
from orchestrator.domain.fault_plan import Arranged
from orchestrator.domain.queue.grant import GrantDesk
from orchestrator.domain.run_layout import RunLayout
from orchestrator.json_values import JsonObject
from orchestrator.metrics.event_bus import EventBus
from orchestrator.planner.model_shape import known_config
from orchestrator.run.clock import Clock
from orchestrator.spec.job import JobSpec
from orchestrator.spec.spec_errors import SpecError
from orchestrator.store.lease.run_lease import RunLease
from orchestrator.store.resume_check import Resumption
from orchestrator.store.run_store import RunStore


@dataclass(frozen=True)
class RunContext:
    """One run. Nothing here changes while it is driven; what changes is in `RunProgress`."""

    spec: JobSpec
    job_dir: Path
    """Directory of the job file: relative paths of the spec start there."""
    layout: RunLayout
    store: RunStore
    stop: threading.Event
    """Set by anyone to end the run within 5 s."""
    bus: EventBus
    """Delivers its events and step reports."""
    lease: RunLease
    """Held by this process until the run ends here."""
    clock: Clock = field(default_factory=Clock)
    arranged: Arranged = field(default_factory=Arranged)
    """What a drill has arranged."""
    locate: Callable[[UsageError], UsageError | SpecError] = lambda error: error
    """Adds the place in the job file to an error about `model.pretrained`."""
    grants: GrantDesk | None = None
    """A server drives the run and decides its places; None: it takes what it asks for."""
    resumption: Resumption | None = None
    """With what a resumed run continues; None: the run is new."""

    def emit(self, body: EventBody) -> None:
        """Publish an event that happens now."""
        self.bus.emit(body)

    def model_config(self) -> JsonObject:
        """The model's config, as far as it is known without loading a library."""
        pretrained = self.spec.model.pretrained
        found = read_json(self.job_dir / pretrained / "config.json") if pretrained is not None else None
        return known_config(self.spec, found)
