"""Options and arguments that several commands share."""

from pathlib import Path

import click
from click.shell_completion import CompletionItem

DEFAULT_HOME = Path("runs")


def complete_run(ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem[str]]":
    """Run ids under the home given so far on the command line, else `CONVOY_HOME`."""
    from orchestrator.store.run_store import RunStore

    home = ctx.params.get("home") or DEFAULT_HOME
    candidates = ("last", *reversed(RunStore(home).ids()))
    return [CompletionItem(value) for value in candidates if value.startswith(incomplete)]


home_option = click.option(
    "--home",
    type=click.Path(path_type=Path),
    envvar="CONVOY_HOME",
    default=DEFAULT_HOME,
    show_default=True,
    show_envvar=True,
    help="Directory of runs.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
run_argument = click.argument("run", shell_complete=complete_run)
