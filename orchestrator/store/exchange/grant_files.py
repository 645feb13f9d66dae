"""Grants of a server to the driver of a run, and its answers, as files in the run's directory."""

import contextlib

from orchestrator.atomic_files import locked, read_json, write_json
from orchestrator.domain.queue.grant import Grant, GrantAnswer
from orchestrator.domain.run_layout import RunLayout

SERVER = "server"
"""Key of the fencing number of the server that decided a grant."""


class GrantFiles:
    """`GrantDesk` for the driver of a run."""

    def __init__(self, layout: RunLayout) -> None:
        self._layout = layout

    def newest(self) -> Grant | None:
        """See `GrantDesk`."""
        return read_grant(self._layout)

    def answer(self, answer: GrantAnswer) -> None:
        """See `GrantDesk`. If the disk fails, the server goes on counting the places of the last two grants."""
        with contextlib.suppress(OSError):
            write_json(self._layout.grant_answer, answer.to_json(), durable=False)


def read_grant(layout: RunLayout) -> Grant | None:
    """The newest grant of a run."""
    return Grant.from_json(read_json(layout.grant))


def read_answer(layout: RunLayout) -> GrantAnswer | None:
    """What the run's driver said last."""
    return GrantAnswer.from_json(read_json(layout.grant_answer))


def write_grant(layout: RunLayout, grant: Grant, server: int) -> bool:
    """Give a run a grant; False, and nothing is written, if a later server has given it one, or this server a newer
    one. `server`: the fencing number of the lease that the server holds on its database. Raises OSError."""
    with locked(layout.root):
        before = read_json(layout.grant) or {}
        fence, number = before.get(SERVER), before.get("number")
        newest = (fence if isinstance(fence, int) else 0, number if isinstance(number, int) else 0)
        if (server, grant.number) < newest:
            return False
        write_json(layout.grant, {**grant.to_json(), SERVER: server})
        return True
