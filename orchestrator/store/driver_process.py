"""Who drives a run: which process on which host, and whether it still lives."""

import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.host_identity import boot_id
from orchestrator.json_values import JsonObject

PID_NAMESPACE = Path("/proc/self/ns/pid")


@dataclass(frozen=True)
class DriverProcess:
    """A process, named so that a reused pid, a rebooted host or a container with the same host name is not mistaken for
    it."""

    pid: int
    host: str
    """For people. Containers may have any name, and the same one on several machines."""
    boot_id: str
    """Of the host's kernel; empty if the system has none."""
    start_ticks: int
    """Field 22 of `/proc/PID/stat`: clock ticks from boot to the process's start. 0 if unknown."""
    pid_namespace: str = ""
    """In which `pid` counts; empty if unknown, as with drivers of older versions."""

    @classmethod
    def current(cls) -> "DriverProcess":
        """This process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> "DriverProcess":
        """A process of this host, by its id."""
        return cls(
            pid=pid,
            host=socket.gethostname(),
            boot_id=boot_id(),
            start_ticks=_start_ticks(pid) or 0,
            pid_namespace=_pid_namespace(),
        )

    def alive(self) -> bool | None:
        """False if the process is certainly gone; None if that cannot be told here.

        Only processes of the same kernel (since the same boot) and of the same pid namespace are visible. The same host
        name with another boot id may be this host before a reboot, or a container on another machine: None.
        """
        if not self._is_visible():
            return None
        ticks = _start_ticks(self.pid)
        if ticks is None:
            return False
        return self.start_ticks in (0, ticks)

    def _is_visible(self) -> bool:
        if not self.boot_id or self.boot_id != boot_id():
            return False
        if self.pid_namespace:
            return self.pid_namespace == _pid_namespace()
        return self.host == socket.gethostname()  # written by an older version

    def to_json(self) -> JsonObject:
        """The fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> "DriverProcess | None":
        """None if `value` is not a driver."""
        if not isinstance(value, Mapping):
            return None
        try:
            return cls(
                int(value["pid"]),
                str(value["host"]),
                str(value["boot_id"]),
                int(value["start_ticks"]),
                str(value.get("pid_namespace", "")),
            )
        except (KeyError, TypeError, ValueError):
            return None


def _pid_namespace() -> str:
    try:
        return str(PID_NAMESPACE.readlink())
    except OSError:
        return ""


def _start_ticks(pid: int) -> int | None:
    """None if there is no such process, or only its zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The command in field 2 is in parentheses and may hold spaces and parentheses itself.
    after = stat.rpartition(")")[2].split()
    return None if after[0] in ("Z", "X") else int(after[19])
