"""Who drives a run: which process on which host, and whether it still lives."""

import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.host_identity import boot_id
from orchestrator.json_values import JsonObject


@dataclass(frozen=True)
class DriverProcess:
    """A process, named so that a reused pid or a rebooted host is not mistaken for it."""

    pid: int
    host: str
    boot_id: str
    """Of the host's kernel; empty where the system has none."""
    start_ticks: int
    """Field 22 of `/proc/PID/stat`: clock ticks from boot to the process's start. 0 where unknown."""

    @classmethod
    def current(cls) -> "DriverProcess":
        """This process."""
        pid = os.getpid()
        return cls(pid=pid, host=socket.gethostname(), boot_id=boot_id(), start_ticks=_start_ticks(pid) or 0)

    def alive(self) -> bool | None:
        """False when the process is certainly gone; None where this host cannot tell (the run is another host's)."""
        if self.host != socket.gethostname():
            return None
        if self.boot_id and self.boot_id != boot_id():
            return False
        ticks = _start_ticks(self.pid)
        if ticks is None:
            return False
        return self.start_ticks in (0, ticks)

    def to_json(self) -> JsonObject:
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> "DriverProcess | None":
        """None where `value` is not a driver."""
        if not isinstance(value, dict):
            return None
        try:
            return cls(int(value["pid"]), str(value["host"]), str(value["boot_id"]), int(value["start_ticks"]))
        except (KeyError, TypeError, ValueError):
            return None


def _start_ticks(pid: int) -> int | None:
    """None where there is no such process, or only its zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The command in field 2 is in parentheses and may hold spaces and parentheses itself.
    after = stat.rpartition(")")[2].split()
    return None if after[0] in ("Z", "X") else int(after[19])
