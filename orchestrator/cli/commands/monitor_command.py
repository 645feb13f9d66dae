"""`convoy monitor`: Prometheus and Grafana for runs."""

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.interrupt import Interrupt
from orchestrator.cli.options import home_option, json_option
from orchestrator.cli.own_command import start_detached
from orchestrator.domain.errors import UsageError
from orchestrator.json_values import JsonObject

if TYPE_CHECKING:
    from orchestrator.monitor.monitor_session import MonitorChoice

PROMETHEUS_PORT, GRAFANA_PORT = 9090, 3000
TOKEN_OF_GRAFANA = "GRAFANA_TOKEN"
MAX_TOKEN_BYTES = 4096
DETACHED_LOOK_S = 0.2
DETACHED_LIMIT_S = 300.0
"""How long a detached monitor may take to be ready; its servers have limits of their own."""


@click.group()
def monitor() -> None:
    """Show runs in Prometheus and Grafana.

    `up` starts Prometheus for the runs of this machine, and Grafana if it is installed. `install` brings the dashboards
    and alert rules into a Grafana that you have. `files` writes the configuration files: for Prometheus, Grafana,
    Docker Compose and Kubernetes.

    \b
    Examples:
      convoy monitor up
      convoy monitor up --detach
      convoy monitor status
      convoy monitor install --grafana-url https://grafana.example.com
      convoy monitor files --to monitoring
    """


@monitor.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=PROMETHEUS_PORT,
    show_default=True,
    help="Port of Prometheus; 0: a free one.",
)
@click.option(
    "--grafana-port",
    type=click.IntRange(0, 65535),
    default=GRAFANA_PORT,
    show_default=True,
    help="Port of Grafana; 0: a free one.",
)
@click.option("--no-grafana", is_flag=True, help="Do not start Grafana.")
@click.option("--retention", default="15d", show_default=True, metavar="TIME", help="How long samples are kept.")
@click.option("--scrape-interval", metavar="TIME", help="How often runs are scraped. Default: 5s.")
@click.option("--alertmanager", metavar="HOST:PORT", help="Send alerts to this Alertmanager.")
@click.option("-d", "--detach", is_flag=True, help="Return once everything runs; `convoy monitor down` ends it.")
@home_option
def up(
    port: int,
    grafana_port: int,
    no_grafana: bool,
    retention: str,
    scrape_interval: str | None,
    alertmanager: str | None,
    detach: bool,
    home: Path,
) -> None:
    """Start Prometheus for the runs of this machine, and Grafana if it is installed.

    Both are found in PATH, listen on loopback, and keep their data in `monitoring/` of the directory of runs, at most 4
    GB. Runs that begin later are found by themselves, and alerts and dashboards are set up. Ctrl-C ends both. Runs that
    need a token are scraped if CONVOY_METRICS_TOKEN has it.

    \b
    Examples:
      convoy monitor up
      convoy monitor up --port 0 --grafana-port 0 --detach
      convoy monitor up --alertmanager 127.0.0.1:9093
    """
    from orchestrator.monitor.monitor_session import MonitorChoice

    for option, text in (("--retention", retention), ("--scrape-interval", scrape_interval)):
        if text is not None and not re.fullmatch(r"([0-9]+(ms|[smhdwy]))+", text):
            raise UsageError(f"{option} {text!r} is not a duration", hint="for example 15d, 12h or 5s")
    choice = MonitorChoice(home, port, grafana_port, not no_grafana, retention, alertmanager, scrape_interval)
    if detach:
        _detach(home)
        return
    interrupt = Interrupt()
    with interrupt.installed():
        _serve(choice, interrupt)
    click.get_current_context().exit(interrupt.exit_code)


def _serve(choice: "MonitorChoice", interrupt: Interrupt) -> None:
    from orchestrator.monitor.monitor_session import MonitorSession

    with MonitorSession(choice, os.environ) as session:
        click.echo("starting Prometheus" + (" and Grafana" if session.has_grafana else "") + " ...", err=True)
        if not session.start(interrupt.stop):
            return
        for note in session.notes:
            click.echo(f"note: {note}", err=True)
        for server in session.servers:
            click.echo(f"{server.plan.name:<12}{server.plan.url}")
        for title, url in session.pages():
            click.echo(f"  {title:<24}{url}")
        click.echo(f"runs of {choice.home.absolute()} appear when they start; Ctrl-C ends this", err=True)
        session.watch(interrupt.stop)


def _detach(home: Path) -> None:
    """Start the same command in a session of its own, and wait until it is ready. Raises ConvoyError if it ends."""
    from orchestrator.monitor.monitor_session import read_state
    from orchestrator.monitor.server_setup import MonitorPaths

    paths = MonitorPaths(home)
    arguments = [argument for argument in sys.argv[1:] if argument not in ("-d", "--detach")]
    try:
        paths.root.mkdir(parents=True, exist_ok=True)
        with paths.log.open("wb") as log:
            process = start_detached(arguments, log)
    except OSError as error:
        raise UsageError(f"cannot write into {paths.root}: {error.strerror or error}") from error
    deadline = time.monotonic() + DETACHED_LIMIT_S
    while process.poll() is None and time.monotonic() < deadline:
        state = read_state(paths)
        if state is not None and state.supervisor.pid == process.pid:
            for name, url, _ in state.servers:
                click.echo(f"{name:<12}{url}")
            click.echo("`convoy monitor down` ends it", err=True)
            return
        time.sleep(DETACHED_LOOK_S)
    said = paths.log.read_text(errors="replace").strip()
    code = process.poll()
    if code is None:
        process.terminate()
    click.echo(said, err=True)
    click.get_current_context().exit(code or 1)


@monitor.command()
@home_option
@json_option
def status(home: Path, as_json: bool) -> None:
    """Show whether Prometheus and Grafana run, and which runs they find.

    \b
    Examples:
      convoy monitor status
      convoy monitor status --json | jq '.targets[].run'
    """
    from orchestrator.json_values import objects
    from orchestrator.monitor.monitor_session import monitor_facts

    facts = monitor_facts(home)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    if not facts["running"]:
        click.echo("not running; `convoy monitor up` starts it")
    for server in objects(facts, "servers"):
        state = "" if server["answers"] else "  (does not answer)"
        click.echo(f"{server['name']:<12}{server['url']}{state}")
    targets = objects(facts, "targets")
    click.echo(f"{len(targets)} run{'s' if len(targets) != 1 else ''} with metrics" + (":" if targets else ""))
    for target in targets:
        note = "" if target["here"] else "  (on another machine's loopback)"
        click.echo(f"  {target['run']}  http://{target['target']}/metrics{note}")


@monitor.command()
@home_option
def down(home: Path) -> None:
    """End what `convoy monitor up` has started. The data stays.

    \b
    Examples:
      convoy monitor down
    """
    from orchestrator.monitor.monitor_session import end_monitor

    click.echo("ended" if end_monitor(home) else "nothing was running")


@monitor.command()
@click.option("--to", type=click.Path(path_type=Path), required=True, help="A new or empty directory.")
def files(to: Path) -> None:
    """Write the files for a monitoring that you operate yourself.

    They are configurations of Prometheus and Alertmanager, rules, dashboards, a Docker Compose file, and manifests for
    the Prometheus operator on Kubernetes.

    \b
    Examples:
      convoy monitor files --to monitoring
    """
    from orchestrator.monitor.monitoring_files import copy_files

    for path in copy_files(to):
        click.echo(str(path))


@monitor.command()
@click.option("--grafana-url", required=True, metavar="URL", help="Grafana's start page.")
@click.option("--folder", default="Convoy", show_default=True, help="Folder of the dashboards and alert rules.")
@click.option("--datasource", metavar="NAME", help="Prometheus data source, by name or uid, if there are several.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help=f"File with the token of a service account. Default: {TOKEN_OF_GRAFANA} of the environment.",
)
@click.option("--no-alerts", is_flag=True, help="Only dashboards: the Prometheus has the alert rules.")
@json_option
def install(
    grafana_url: str, folder: str, datasource: str | None, token_file: Path | None, no_alerts: bool, as_json: bool
) -> None:
    """Bring the dashboards and alert rules into a Grafana that you have.

    They are created or replaced, and nothing changes if they are there already. The token is that of a service account
    with the role Editor; it comes from GRAFANA_TOKEN or a file, never from the command line.

    \b
    Examples:
      GRAFANA_TOKEN=... convoy monitor install --grafana-url https://grafana.example.com
      convoy monitor install --grafana-url http://127.0.0.1:3000 --token-file ~/grafana.token --folder Training
      convoy monitor install --grafana-url https://grafana.example.com --datasource Mimir --no-alerts
    """
    from orchestrator.monitor.grafana_api import GrafanaApi
    from orchestrator.monitor.grafana_install import install as install_all

    api = GrafanaApi(grafana_url, _token(token_file))
    done: list[JsonObject] = []
    for each in install_all(api, folder, datasource, alerts=not no_alerts):
        done.append(each.to_json())
        if not as_json:
            click.echo(f"{each.action:<10}{each.kind:<12}{each.name}  {each.url}".rstrip())
    if as_json:
        click.echo(json.dumps(done, indent=2))


def _token(file: Path | None) -> str:
    """Raises UsageError if there is none, or it cannot be one."""
    source = str(file) if file is not None else TOKEN_OF_GRAFANA
    hint = "in Grafana: Administration, Users and access, Service accounts, Add token"
    try:
        token = _start_of(file) if file is not None else os.environ.get(TOKEN_OF_GRAFANA, "")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the token cannot be read from {source}: {error}", hint=hint) from error
    token = token.strip()
    if not token:
        hint = f"export {TOKEN_OF_GRAFANA}, or --token-file FILE; {hint}"
        raise UsageError(f"there is no token for Grafana in {source}", hint=hint)
    if not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(f"what is in {source} is not a token: it has spaces, line breaks or other characters", hint)
    return token


def _start_of(file: Path) -> str:
    with file.open("rb") as stream:
        return stream.read(MAX_TOKEN_BYTES).decode()
