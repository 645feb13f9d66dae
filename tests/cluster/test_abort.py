"""A generation that is aborted: its groups are forgotten, other connections live, and the process trains again."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.zero_gang import Gang, Setup, WorkerRaised, build, train

pytestmark = pytest.mark.cluster


def aborted(stage: int) -> list[Any]:
    """In a worker: train, and be aborted as under NCCL, several times. Losses, and what is left of connections, threads
    and groups."""
    import torch.distributed as dist
    from deepspeed.utils import groups

    from orchestrator.train.collectives.abort_collectives import Unblocker
    from orchestrator.train.collectives.rendezvous import leave_process_group

    unblock = Unblocker("cuda")
    unblock.learn()
    losses = trained(stage)
    with listening() as (ours, theirs):
        for _ in range(3):
            unblock()
        with contextlib.suppress(RuntimeError), unblock.aborting_on_error():
            raise RuntimeError("a peer is lost")
        unblock()
        ours.sendall(b"alive")
        received = theirs.recv(5)
    aborting = [thread.name for thread in threading.enumerate() if thread.name == "abort"]
    left = dist.is_initialized()
    leave_process_group()
    return [losses, received, aborting, left, groups._WORLD_GROUP is None]


def trained(stage: int) -> list[float]:
    """In a worker: losses of two steps of an engine that is built and destroyed."""
    from orchestrator.train.engine.engine import destroy_engine

    engine = build(Setup(stage))
    losses = train(engine, 0, 2)
    destroy_engine(engine)
    return losses


@contextlib.contextmanager
def listening() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a TCP connection that is opened after the group was made, as one to a vault."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as ours:
        theirs, _ = server.accept()
        with theirs:
            ours.settimeout(5.0)
            theirs.settimeout(5.0)
            yield ours, theirs


@pytest.mark.parametrize("stage", [1, 3])
def test_processes_whose_groups_were_aborted_train_again(stage: int, gang: Gang) -> None:
    first = gang.run(2, aborted, stage)
    for _, received, aborting, left, released in first:
        assert received == b"alive", "an abort shut a connection that is not a group's"
        assert (aborting, left, released) == ([], False, True)
    assert gang.run(2, trained, stage) == [losses for losses, *_ in first]


def test_an_error_before_the_group_is_made_is_no_abort() -> None:
    from orchestrator.train.collectives.abort_collectives import Unblocker

    unblock = Unblocker("cuda")
    with pytest.raises(WorkerRaised, match="at once"), unblock.aborting_on_error():
        raise WorkerRaised("at once")
    assert not unblock.aborted
