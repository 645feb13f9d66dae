"""`convoy server`: the server with the queue."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

import click

from orchestrator.cli.options import home_option, json_option
from orchestrator.cli.own_command import start_detached
from orchestrator.domain.errors import ConvoyError, UsageError

if TYPE_CHECKING:
    from orchestrator.api.server_settings import ServerSettings
    from orchestrator.json_values import JsonValue

CHOSEN = "convoy.server"
"""Key of click's `meta`: the settings given as flags."""
START_LIMIT_S = 120.0
"""A local Ray cluster has to start too."""
_LOOK_S = 0.1
SHOWN_LOG_LINES = 15
Arguments = ParamSpec("Arguments")


@click.group()
def server() -> None:
    """Start, stop and look at the server with the queue.

    It needs nothing but this machine: its database is a file, and it starts a local Ray cluster if no other is named.
    It listens on loopback unless it is configured otherwise.

    \b
    Examples:
      convoy server start
      convoy server status
      convoy submit jobs/quickstart.yaml
      convoy server stop
    """


def _keep(ctx: click.Context, param: click.Parameter, value: object) -> None:
    ctx.meta.setdefault(CHOSEN, {})[param.name] = list(value) if isinstance(value, tuple) and value else value or None


def setting_options(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """The settings of a server as flags. They are kept in click's `meta`."""
    for option in reversed((
        click.option("--listen", metavar="HOST:PORT", callback=_keep, expose_value=False,
                     help="Where to listen; port 0: a free one. [default: 127.0.0.1:8470]"),
        click.option("--tls-certificate", metavar="FILE", callback=_keep, expose_value=False,
                     help="PEM file with the certificate chain."),
        click.option("--tls-key", metavar="FILE", callback=_keep, expose_value=False, help="PEM file with its key."),
        click.option("--behind-proxy", is_flag=True, callback=_keep, expose_value=False,
                     help="A reverse proxy in front terminates TLS."),
        click.option("--address", metavar="HOST:PORT", callback=_keep, expose_value=False,
                     help="Ray cluster that runs train on. Default: a local one, which the server starts."),
        click.option("--nodes", type=click.IntRange(1, 64), callback=_keep, expose_value=False,
                     help="Nodes of the local cluster. [default: 1]"),
        click.option("--cpus-per-node", type=click.FloatRange(min=0, min_open=True), callback=_keep,
                     expose_value=False, help="CPUs that each local node offers."),
        click.option("--storage", metavar="PLACE", callback=_keep, expose_value=False,
                     help="Where checkpoints go of jobs that do not say it: a directory or URL."),
        click.option("--path", "paths", multiple=True, metavar="DIR", callback=_keep, expose_value=False,
                     help="Directory that jobs may use. Repeatable."),
        click.option("--variable", "variables", multiple=True, metavar="NAME", callback=_keep, expose_value=False,
                     help="Environment variable that jobs may name as ${NAME}. Repeatable."),
    )):  # fmt: skip
        command = option(command)
    return command


config_option = click.option("--config", "config_file", type=click.Path(path_type=Path, dir_okay=False),
                             help="Config file. Default: server/config.yaml in the directory of runs.")  # fmt: skip


@server.command()
@setting_options
@config_option
@click.option("--foreground", is_flag=True, help="Stay in the foreground, and log to stderr.")
@home_option
@json_option
def start(config_file: Path | None, foreground: bool, home: Path, as_json: bool) -> None:
    """Start the server, and return once it answers.

    Settings come from flags, then from variables such as CONVOY_SERVER_LISTEN, then from the config file. The server
    refuses to listen beyond loopback without TLS or --behind-proxy. At the first start it makes the token of an admin
    in `server/admin-token` in the directory of runs, which only you can read; commands on this machine use it.

    Runs do not depend on the server's process: if it ends, they continue, and the next one takes them up.

    \b
    Examples:
      convoy server start
      convoy server start --nodes 4 --cpus-per-node 2
      convoy server start --address 10.0.0.1:6379 --listen 0.0.0.0:8470 --tls-certificate c.pem --tls-key k.pem
      convoy server start --foreground

    Exit codes: 0 it answers (with --foreground: it was stopped); 1 it did not start; 2 a setting is wrong.
    """
    from orchestrator.api.server_files import ServerFiles

    settings = _settings(home, config_file)
    files = ServerFiles(settings.folder)
    found = files.running()
    if found is not None:
        raise UsageError(
            f"a server runs already for {home.absolute()}: {found.url} (process {found.process.pid})",
            "`convoy server status` shows it, `convoy server stop` ends it",
        )
    if foreground:
        from orchestrator.api.serving_process import serve

        serve(settings, os.environ, lambda line: click.echo(line, err=True))
        return
    files.make()
    process = _detach(files.log)
    _await_answer(files.running, process, files.log)
    _await_cluster(home)
    _say_status(home, as_json)


def _settings(home: Path, config_file: Path | None) -> "ServerSettings":
    from orchestrator.api.server_settings import read_settings

    flags: dict[str, JsonValue] = click.get_current_context().meta.get(CHOSEN, {})
    return read_settings(home, config_file, os.environ, flags)


def _detach(log: Path) -> "subprocess.Popen[bytes]":
    """The same command in a session of its own. Raises UsageError."""
    arguments = [each for each in sys.argv[1:] if each != "--json"]
    try:
        with log.open("ab") as output:
            return start_detached([*arguments, "--foreground"], output)
    except OSError as error:
        raise UsageError(f"cannot write {log}: {error.strerror}") from error


def _await_answer(running: Callable[[], object], process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Raises ConvoyError with the end of the log if it ends, or does not answer in time."""
    deadline = time.monotonic() + START_LIMIT_S
    while running() is None:
        ended = process.poll() is not None
        if ended or time.monotonic() > deadline:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN_LOG_LINES:]
            what = "the server did not start" if ended else f"the server does not answer after {START_LIMIT_S:g} s"
            error = ConvoyError(what + "".join(f"\n  {line}" for line in lines), f"its log is {log}")
            error.exit_code = process.returncode if ended and process.returncode in (1, 2) else 1
            raise error
        time.sleep(_LOOK_S)


def _await_cluster(home: Path) -> None:
    """Until the cluster answers, or for `START_LIMIT_S`: the server works without it too."""
    from orchestrator.client.convoy_client import ConvoyClient
    from orchestrator.client.server_choice import local_server

    deadline, address = time.monotonic() + START_LIMIT_S, local_server(home)
    if address is None:
        return
    with ConvoyClient(address) as client:
        while client.server().cluster is None and time.monotonic() < deadline:
            time.sleep(_LOOK_S)


@server.command()
@home_option
@json_option
@click.option("--cluster", is_flag=True, help="End the local cluster too, and with it the runs that train on it.")
def stop(home: Path, as_json: bool, cluster: bool) -> None:
    """End the server. Runs continue without it, and the next server takes them up.

    With --cluster the local Ray cluster ends too: runs on it are suspended from their newest state.

    \b
    Examples:
      convoy server stop
      convoy server stop --cluster
    """
    from orchestrator.api.server_files import ServerFiles
    from orchestrator.client.server_choice import SERVER_FOLDER

    files = ServerFiles(home.absolute() / SERVER_FOLDER)
    found = files.running()
    if found is None and not cluster:
        raise UsageError(f"no server runs for {home.absolute()}", "`convoy server start` starts one")
    if found is not None:
        files.stop(found)
    ended = _stop_cluster(files.cluster) if cluster else False
    if as_json:
        value = {"stopped": found is not None, "url": found.url if found else None, "cluster_stopped": ended}
        click.echo(json.dumps(value, indent=2))
        return
    if found is not None:
        click.echo(f"the server at {found.url} has ended")
    if cluster:
        click.echo("its local cluster has ended" if ended else "there was no local cluster")


def _stop_cluster(directory: Path) -> bool:
    from orchestrator.control.cluster.kept_cluster import stop_cluster

    return stop_cluster(directory)


@server.command()
@home_option
@json_option
def status(home: Path, as_json: bool) -> None:
    """Show whether the server of this machine runs, its address, and its cluster.

    \b
    Examples:
      convoy server status
      convoy server status --json | jq -r .url

    Exit codes: 0 it runs and works; 1 it does not answer, its cluster does not, or another server acts; 2 there is
    none.
    """
    click.get_current_context().exit(_say_status(home, as_json))


def _say_status(home: Path, as_json: bool) -> int:
    from orchestrator.api.server_files import ServerFiles
    from orchestrator.client.convoy_client import ConvoyClient
    from orchestrator.client.server_choice import SERVER_FOLDER, local_server

    files = ServerFiles(home.absolute() / SERVER_FOLDER)
    found, address = files.running(), local_server(home)
    if found is None or address is None:
        raise UsageError(f"no server runs for {home.absolute()}", "`convoy server start` starts one")
    with ConvoyClient(address) as client:
        view = client.server()
    if as_json:
        click.echo(json.dumps({"url": found.url, "pid": found.process.pid, **view.model_dump(mode="json")}, indent=2))
    else:
        acting = "acts" if view.acting else "waits: another server acts on its database"
        click.echo(f"{found.url}  Convoy {view.version}, process {found.process.pid}, {acting}")
        click.echo(f"  page       {page_address(found.url, address.secret, sys.stdout.isatty())}")
        click.echo(f"  cluster    {view.cluster or 'does not answer yet'}")
        click.echo(f"  token      {files.admin_token}  (admin; commands on this machine use it)")
        click.echo(f"  log        {files.log}")
    return 0 if view.acting and view.cluster is not None else 1


def page_address(url: str, token: str | None, for_person: bool) -> str:
    """Where the page is. For a person at a terminal with the token, which a browser does not send to any server; a
    pipe or a log does not get it."""
    return f"{url}/#token={token}" if for_person and token else f"{url}/  (it asks for a token)"


@server.command()
@setting_options
@config_option
@click.option("--user", "for_user", is_flag=True, help="A unit of the calling user instead of one of the system.")
@click.option("--to", "target", type=click.Path(path_type=Path), help="Write to this file; - prints it.")
@home_option
def install(config_file: Path | None, for_user: bool, target: Path | None, home: Path) -> None:
    """Write a systemd unit that starts the server at boot, and again if it dies.

    \b
    Examples:
      sudo convoy server install --address 10.0.0.1:6379 --behind-proxy --listen 0.0.0.0:8470
      convoy server install --user
      convoy server install --to -
    """
    from orchestrator.api.systemd_unit import unit_path, unit_text

    settings = _settings(home, config_file)
    text = unit_text(settings, config_file, sys.executable, for_user)
    path = target or unit_path(for_user, Path.home())
    if str(path) == "-":
        click.echo(text, nl=False)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", "use sudo, --user, or --to FILE") from error
    scope = "systemctl --user" if for_user else "systemctl"
    click.echo(f"{path} is written. Start it: {scope} daemon-reload && {scope} enable --now {path.stem}")
