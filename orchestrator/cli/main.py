"""`convoy`: the command line. Commands are imported when called, so that `convoy --help` starts in an instant."""

import importlib
import sys

import click

from orchestrator.domain.errors import ConvoyError

COMMANDS = {
    "run": ("orchestrator.cli.run:run", "Train: run a job here and now, and watch it."),
    "validate": ("orchestrator.cli.validate:validate", "Check a job file; nothing is started."),
    "schema": ("orchestrator.cli.validate:schema", "Print the JSON Schema of job files."),
    "runs": ("orchestrator.cli.runs:runs", "List runs."),
    "show": ("orchestrator.cli.runs:show", "Show one run: state, progress, where its time went."),
    "logs": ("orchestrator.cli.runs:logs", "Print the output of a run's workers."),
    "export": ("orchestrator.cli.model:export", "Write a run's model in Hugging Face format."),
    "generate": ("orchestrator.cli.model:generate", "Generate text with a run's model."),
    "data": ("orchestrator.cli.data:data", "Prepare data; prove what a run consumed."),
    "doctor": ("orchestrator.cli.doctor:doctor", "What this machine and cluster can do, and what is missing."),
    "completion": ("orchestrator.cli.completion:completion", "Print the shell completion script."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="convoy-train", prog_name="convoy")
def cli() -> None:
    """Train language models on clusters that lose nodes.

    \b
    Examples:
      convoy run jobs/quickstart.yaml
      convoy validate job.yaml --set train.lr=1e-3
      convoy runs
    """


def main() -> None:
    """Entry point. Errors meant for people are printed as one line and a hint; exit codes are theirs."""
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except ConvoyError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)
