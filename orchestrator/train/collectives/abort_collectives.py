"""Interrupts a training thread in a collective whose other side is gone.

NCCL's communicators are aborted: waiting kernels end with garbage in their results, which must not be used
(`Session.interrupted`).

gloo has no abort: a rank that waits for one that is dead or silent, or for a neighbour that waits for it, waits until a
timeout (https://github.com/pytorch/pytorch/blob/v2.13.0/torch/csrc/distributed/c10d/ProcessGroupGloo.cpp). Shutting its
connections works: the wait ends with an error at once. Only gloo's connections are shut. The process has others, Ray's
above all, that must stay open; gloo's are identified by the ports that gloo listens on, which ranks exchange.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import psutil
import torch.distributed as dist

from orchestrator.domain.devices.device import CUDA
from orchestrator.json_values import integers, texts
from orchestrator.train.collectives.exchange import exchange_json
from orchestrator.train.collectives.rendezvous import abort_process_groups

if TYPE_CHECKING:
    from psutil._ntuples import pconn

Address = tuple[str, int]
ABORT_S = 60.0
"""Time for an abort; the driver waits less."""


class Unblocker:
    """Created before the process group; `learn` is called when that and the engine exist; callable from any thread."""

    def __init__(self, device_type: str) -> None:
        """`device_type`: `cpu`, whose ranks talk through gloo, or `cuda`, whose ranks talk through NCCL."""
        self._before = _inodes()
        self._own_ports: frozenset[int] | None = None
        self._peers: frozenset[Address] = frozenset()
        self._aborts = device_type == CUDA
        self._learnt = False
        self._aborting: threading.Thread | None = None

    @property
    def aborted(self) -> bool:
        """Communicators were aborted, or are being aborted: the process group must not be shut down in order."""
        return self._aborting is not None

    def learn(self) -> None:
        """Exchange the ports of all ranks; from now on only those are touched. Collective. NCCL's stay alone."""
        self._learnt = True
        if dist.get_world_size() == 1 or self._aborts:
            return
        new = [c for c in _connections() if c.status == psutil.CONN_LISTEN and _inode(c.fd) not in self._before]
        ports = [c.laddr.port for c in new]
        answers = exchange_json({"addresses": [c.laddr.ip for c in new], "ports": ports})
        self._peers = frozenset(
            pair for each in answers for pair in zip(texts(each, "addresses"), integers(each, "ports"), strict=True)
        )
        self._own_ports = frozenset(ports)

    def __call__(self) -> None:
        """Shut the connections once. What was about to be opened is caught by calling again.

        With NCCL, abort all communicators instead, once there is a process group; before that, the rendezvous waits on
        the store's connection, which is shut. Does not wait for the abort: it can take as long as the kernels that are
        queued before the one that waits.
        """
        if self._aborting is not None:
            return
        if self._aborts and dist.is_initialized():
            self._aborting = threading.Thread(target=abort_process_groups, name="abort", daemon=True)
            self._aborting.start()
            return
        if self._aborts and self._learnt:
            return  # the groups ended: every connection that is there now belongs to others
        for connection in _connections():
            if connection.status != psutil.CONN_LISTEN and connection.fd >= 0 and self._is_ours(connection):
                _shut(connection.fd)

    @contextlib.contextmanager
    def aborting_on_error(self) -> Iterator[None]:
        """Context of the training thread. If it is left by an exception, NCCL's communicators are aborted before the
        exception propagates: freeing an engine waits for kernels on the device, and those may wait for a peer.

        Waits `ABORT_S` at most. A process whose abort takes longer is ended by the driver.
        """
        try:
            yield
        except BaseException:
            if self._aborts and dist.is_initialized():
                self()
            if self._aborting is not None:
                self._aborting.join(ABORT_S)
            raise

    def _is_ours(self, connection: "pconn") -> bool:
        if self._own_ports is None:  # still in the rendezvous: whatever was opened since
            return _inode(connection.fd) not in self._before
        remote = (connection.raddr.ip, connection.raddr.port) if connection.raddr else None
        return connection.laddr.port in self._own_ports or remote in self._peers


def _connections() -> "list[pconn]":
    """This process's TCP sockets, as psutil describes them."""
    return psutil.Process().net_connections("tcp")


def _inode(descriptor: int) -> str | None:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115
    except OSError:
        return None


def _inodes() -> frozenset[str]:
    """Of every socket of this process."""
    found = (_inode(int(name)) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208
    return frozenset(link for link in found if link is not None and link.startswith("socket:"))


def _shut(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # closed meanwhile
        connection = socket.socket(fileno=os.dup(descriptor))
        try:
            connection.shutdown(socket.SHUT_RDWR)
        finally:
            connection.close()
