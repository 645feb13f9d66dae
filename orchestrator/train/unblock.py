"""Get a training thread out of a collective whose other side is gone.

gloo has no abort: a rank that waits for one that is dead or silent, or for a neighbour that waits for it, waits until
a timeout (https://github.com/pytorch/pytorch/blob/v2.13.0/torch/csrc/distributed/c10d/ProcessGroupGloo.cpp). What
works is to shut its connections: the wait ends with an error at once. Only gloo's are shut. The process has others,
Ray's above all, that must live on; gloo's are told apart by the ports that gloo listens on, which ranks exchange.
"""

import contextlib
import os
import socket
from typing import Any

import psutil
import torch
import torch.distributed as dist

from orchestrator.train.exchange import exchange_json

Address = tuple[str, int]


class Unblocker:
    """Made before the process group, told when that and the engine are there (`learn`), called from any thread."""

    def __init__(self) -> None:
        self._before = _inodes()
        self._own_ports: frozenset[int] | None = None
        self._peers: frozenset[Address] = frozenset()

    def learn(self) -> None:
        """Exchange the ports of all ranks, from now on only those are touched. Collective; not for NCCL's sockets."""
        if dist.get_world_size() == 1 or dist.get_backend() != "gloo":
            return
        new = [c for c in _connections() if c.status == psutil.CONN_LISTEN and _inode(c.fd) not in self._before]
        own = [[c.laddr.ip, c.laddr.port] for c in new]
        answers = exchange_json({"listening": own})
        self._peers = frozenset((ip, port) for answer in answers for ip, port in answer["listening"])
        self._own_ports = frozenset(port for _, port in own)

    def __call__(self) -> None:
        """Shut the connections once. What was about to be opened is caught by calling again."""
        if dist.is_initialized() and dist.get_backend() == "nccl":
            torch.distributed.distributed_c10d._abort_process_group()
            return
        for connection in _connections():
            if connection.status != psutil.CONN_LISTEN and connection.fd >= 0 and self._is_ours(connection):
                _shut(connection.fd)

    def _is_ours(self, connection: Any) -> bool:
        if self._own_ports is None:  # still in the rendezvous: whatever was opened since
            return _inode(connection.fd) not in self._before
        remote = (connection.raddr.ip, connection.raddr.port) if connection.raddr else None
        return connection.laddr.port in self._own_ports or remote in self._peers


def _connections() -> list[Any]:
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
