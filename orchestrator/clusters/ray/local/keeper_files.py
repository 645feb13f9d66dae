"""What the keeper of a local cluster and those who look for it share: a lock, an address, a log.

Whoever holds the lock keeps the cluster; the kernel drops it when that process dies, and every process of the cluster
dies with that process. So there is a cluster if and only if the lock is held."""

import contextlib
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from orchestrator.atomic_files import read_json, try_lock, write_json
from orchestrator.json_values import JsonFields, JsonObject, integer, mapping, number_mapping, text, texts


@dataclass(frozen=True)
class KeptNodes:
    """Which local cluster to keep."""

    nodes: int
    resources: dict[str, float]
    """That each node offers, by Ray's names."""
    gpus: tuple[str, ...] = ()
    """Of this machine, dealt out evenly."""
    preload: tuple[str, ...] = ()
    """Modules that a fork server imports for all workers; none: workers start as on any other cluster."""

    def to_json(self) -> JsonObject:
        """The fields as JSON values."""
        return {
            "nodes": self.nodes,
            "resources": dict(self.resources),
            "gpus": list(self.gpus),
            "preload": list(self.preload),
        }

    @classmethod
    def from_json(cls, value: JsonFields) -> "KeptNodes":
        """Raises JsonShapeError."""
        found = number_mapping(value, "resources")
        return cls(integer(value, "nodes"), found, tuple(texts(value, "gpus")), tuple(texts(value, "preload")))


@dataclass(frozen=True)
class KeptCluster:
    """A cluster that is up."""

    address: str
    """`host:port` of its GCS."""
    keeper: int
    """Pid of the keeper."""
    kept: KeptNodes


class KeeperFiles:
    """The files in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock, self._address = directory / "lock", directory / "cluster.json"
        self.log = directory / "keeper.log"

    def take(self) -> int | None:
        """Become the keeper: a descriptor that holds the lock until it is closed; None if there is a keeper. Raises
        OSError."""
        self.directory.mkdir(parents=True, exist_ok=True)
        descriptor = try_lock(self._lock, 0o600)
        if descriptor is not None:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        return descriptor

    def keeper(self) -> int | None:
        """Pid of the keeper; None if there is none. 0 if it has only just begun."""
        try:
            descriptor = os.open(self._lock, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            found = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            return int(found) if found.isdecimal() else 0
        finally:
            os.close(descriptor)

    def announce(self, cluster: KeptCluster) -> None:
        """Tell where the cluster is. Raises OSError."""
        value: JsonObject = {"address": cluster.address, "keeper": cluster.keeper, "kept": cluster.kept.to_json()}
        write_json(self._address, value)

    def withdraw(self) -> None:
        """There is no cluster now. Idempotent."""
        with contextlib.suppress(OSError):
            self._address.unlink(missing_ok=True)

    def cluster(self) -> KeptCluster | None:
        """The cluster that is up; None if there is none, or not yet."""
        keeper, value = self.keeper(), read_json(self._address)
        if keeper is None or value is None:
            return None
        try:
            kept = KeptNodes.from_json(mapping(value, "kept"))
            found = KeptCluster(text(value, "address"), integer(value, "keeper"), kept)
        except ValueError:
            return None
        return found if found.keeper == keeper else None

    def log_tail(self) -> str:
        """The last lines of the keeper's log, in one line."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(errors="replace").splitlines()
            return " | ".join(line for line in lines[-5:] if line.strip())[-1000:]
        return ""
