"""`convoy login` and `convoy token`: which server commands use, and who may use it."""

import json
import os
import re
import sys
import time
from pathlib import Path

import click

from orchestrator.cli.options import home_option, json_option
from orchestrator.cli.server_connection import connect, server_option
from orchestrator.domain.errors import UsageError

LONGEST_SECRET = 256
_DAY_S = 86400.0
_UNITS_S = {"h": 3600.0, "d": _DAY_S, "w": 7 * _DAY_S}


@click.command()
@click.argument("url")
@click.option("--ca-file", type=click.Path(exists=True, dir_okay=False), help="Certificates that sign the server's.")
@click.option("--forget", is_flag=True, help="Remove the stored token of this server.")
@home_option
@json_option
def login(url: str, ca_file: str | None, forget: bool, home: Path, as_json: bool) -> None:
    """Store the address and token of a server, and use it from now on.

    The token is read from standard input, without echo on a terminal, or taken from CONVOY_TOKEN: on the command line
    other users of this machine could see it. It is stored in `servers.json` in the directory of runs; only you can read
    the file.

    \b
    Examples:
      convoy login https://convoy.example.com:8470
      convoy login https://convoy.example.com:8470 < token.txt
      convoy login https://convoy.example.com:8470 --forget
    """
    from orchestrator.client.convoy_client import ConvoyClient
    from orchestrator.client.server_choice import ServerAddress, normal_url, remove_login, store_login

    address = normal_url(url)
    if forget:
        if not remove_login(home, address):
            raise UsageError(f"no token is stored for {address}")
        click.echo(f"the token for {address} was removed")
        return
    ca_path = str(Path(ca_file).absolute()) if ca_file is not None else None
    with ConvoyClient(ServerAddress(address, _read_secret(), ca_path, "convoy login")) as client:
        token, view = client.own_token(), client.server()
    path = store_login(home, address, client.address.secret or "", ca_path)
    if as_json:
        value = {"url": address, "server": view.model_dump(mode="json"), "token": token.model_dump(mode="json")}
        click.echo(json.dumps(value, indent=2))
        return
    click.echo(f"logged in to {address} (Convoy {view.version}) as {token.user} of {token.team}, role {token.role}")
    click.echo(f"stored in {path}", err=True)


def _read_secret() -> str:
    """The token. Raises UsageError if there is none."""
    given = os.environ.get("CONVOY_TOKEN")
    if not given:
        if sys.stdin.isatty():
            given = click.prompt("Token", hide_input=True, err=True)
        else:
            given = sys.stdin.readline(LONGEST_SECRET)
    if not given or not given.strip():
        raise UsageError("there is no token on standard input", "an admin makes one: `convoy token create NAME`")
    return given.strip()


@click.group()
def token() -> None:
    """Make, list and revoke the tokens of a server.

    \b
    Examples:
      convoy token create alice-laptop --user alice --team nlp
      convoy token list
      convoy token revoke alice-laptop
    """


@token.command()
@click.argument("name")
@click.option("--user", help="Whose runs are submitted with it. Default: NAME.")
@click.option("--team", default="default", show_default=True, help="Whose members may control these runs.")
@click.option("--role", type=click.Choice(["viewer", "submitter", "admin"]), default="submitter", show_default=True,
              help="What it permits.")  # fmt: skip
@click.option("--expires", metavar="TIME", help="After 12h, 30d or 8w. Default: never.")
@server_option
@home_option
@json_option
def create(
    name: str, user: str | None, team: str, role: str, expires: str | None, server: str | None, home: Path,
    as_json: bool,
) -> None:  # fmt: skip
    """Make a token. It is printed this once: the server keeps only its hash.

    A viewer may read, a submitter may submit and control the runs of the team, an admin may do everything.

    \b
    Examples:
      convoy token create alice-laptop --user alice --team nlp
      convoy token create dashboard --role viewer --expires 30d
    """
    from pydantic import ValidationError

    from orchestrator.wire.request_messages import TokenRequest

    value = {"name": name, "user": user or name, "team": team, "role": role, "expires_in_s": _seconds(expires)}
    try:
        request = TokenRequest.model_validate(value)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise UsageError(
            f"the {wrong['loc'][0]} cannot be {value[str(wrong['loc'][0])]!r}",
            "letters, digits and . _ @ - after the first, 64 characters at most",
        ) from None
    with connect(home, server) as client:
        made = client.create_token(request)
    if as_json:
        click.echo(json.dumps(made.model_dump(mode="json"), indent=2))
        return
    click.echo(made.secret)
    click.echo(f"token {made.token.id} ({made.token.name}), {made.token.role} of {made.token.team}", err=True)
    click.echo(f"use it with: convoy login {client.address.url}", err=True)


@token.command("list")
@server_option
@home_option
@json_option
def list_tokens(server: str | None, home: Path, as_json: bool) -> None:
    """List all tokens, without their secrets.

    \b
    Examples:
      convoy token list
      convoy token list --json | jq '.[] | select(.revoked | not) | .name'
    """
    from orchestrator.cli.display.queue_text import tokens_table

    with connect(home, server) as client:
        found = client.tokens()
    if as_json:
        click.echo(json.dumps([each.model_dump(mode="json") for each in found], indent=2))
    else:
        click.echo(tokens_table(found, time.time()))


@token.command()
@click.argument("name")
@server_option
@home_option
@json_option
def revoke(name: str, server: str | None, home: Path, as_json: bool) -> None:
    """Make a token invalid at once. NAME is its name, its id, or the beginning of its id.

    \b
    Examples:
      convoy token revoke alice-laptop
    """
    with connect(home, server) as client:
        view = client.revoke_token(name)
    value = json.dumps(view.model_dump(mode="json"), indent=2)
    click.echo(value if as_json else f"token {view.id} ({view.name}) is revoked")


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,5})([hdw])", text)
    if found is None or int(found.group(1)) == 0:
        raise UsageError(f"--expires {text!r} is no time", "for example 12h, 30d or 8w")
    return int(found.group(1)) * _UNITS_S[found.group(2)]
