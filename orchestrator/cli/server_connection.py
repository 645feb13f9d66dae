"""The server that a command talks to."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from orchestrator.client.convoy_client import ConvoyClient
    from orchestrator.client.server_choice import ServerAddress

server_option = click.option(
    "--server",
    envvar="CONVOY_SERVER",
    metavar="URL",
    show_envvar=True,
    help="Address of the server. Default: that of the last `convoy login`, or the one on this machine.",
)


def connect(home: Path, server: str | None) -> "ConvoyClient":
    """A client of the server to use; close it, or use it as a context. Raises UsageError if there is none."""
    from orchestrator.client.convoy_client import ConvoyClient
    from orchestrator.client.server_choice import choose_server

    return ConvoyClient(choose_server(home, server, os.environ))


def known_server(home: Path, server: str | None) -> "ServerAddress | None":
    """The server to use, if there is one: for commands that also work without."""
    from orchestrator.client.server_choice import choose_server
    from orchestrator.domain.errors import UsageError

    try:
        return choose_server(home, server, os.environ)
    except UsageError:
        if server is not None:
            raise
        return None
