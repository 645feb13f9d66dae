"""`convoy`: the command line. Commands are imported when called, so that `convoy --help` starts in an instant."""

import difflib
import importlib
import os
import sys
import tempfile
import traceback

import click

from orchestrator import __version__
from orchestrator.domain.errors import ConvoyError
from orchestrator.spec.spec_errors import SpecError

COMMANDS = {
    "run": ("orchestrator.cli.commands.run_command:run", "Train: run a job in the foreground."),
    "validate": ("orchestrator.cli.commands.validate_command:validate", "Check a job file without starting anything."),
    "schema": ("orchestrator.cli.commands.validate_command:schema", "Print the JSON Schema of job files."),
    "runs": ("orchestrator.cli.commands.runs_commands:runs", "List runs."),
    "show": ("orchestrator.cli.commands.runs_commands:show", "Show a run: state, progress, and where its time went."),
    "durability": (
        "orchestrator.cli.commands.durability_command:durability",
        "Show what a run would lose if a node failed now.",
    ),
    "goodput": (
        "orchestrator.cli.commands.goodput_command:goodput",
        "Show what the time of a run's workers was spent on, and its cost.",
    ),
    "why": ("orchestrator.cli.commands.report_commands:why", "Say what bounds the speed of a run, and what to do."),
    "top": ("orchestrator.cli.commands.top_command:top", "Watch runs live."),
    "report": ("orchestrator.cli.commands.report_commands:report", "Write a run's report as one HTML file."),
    "logs": ("orchestrator.cli.commands.runs_commands:logs", "Print the output of a run's workers."),
    "scale": ("orchestrator.cli.commands.scale_command:scale", "Change the number of workers of an active run."),
    "server": ("orchestrator.cli.commands.server_command:server", "Start and stop the server with the queue."),
    "submit": ("orchestrator.cli.commands.queue.submit_command:submit", "Put a job into a server's queue."),
    "ps": ("orchestrator.cli.commands.queue.queue_commands:ps", "List the runs of a server."),
    "status": (
        "orchestrator.cli.commands.queue.run_control:status",
        "Show a run: why it waits, its progress.",
    ),
    "events": ("orchestrator.cli.commands.queue.run_control:events", "Print the events of a run in a queue."),
    "pause": ("orchestrator.cli.commands.queue.run_control:pause", "Save a run's state and release its capacity."),
    "resume": ("orchestrator.cli.commands.queue.run_control:resume", "Queue a paused run again."),
    "retry": ("orchestrator.cli.commands.queue.run_control:retry", "Queue a failed or cancelled run again."),
    "cancel": ("orchestrator.cli.commands.queue.run_control:cancel", "End a run in a queue for good."),
    "queue": ("orchestrator.cli.commands.queue.queue_commands:queue", "List the queues: shares, who runs, who waits."),
    "nodes": (
        "orchestrator.cli.commands.queue.queue_commands:nodes",
        "List the cluster's nodes, or drain one.",
    ),
    "login": ("orchestrator.cli.commands.queue.access_commands:login", "Store the address and token of a server."),
    "token": ("orchestrator.cli.commands.queue.access_commands:token", "Make, list and revoke tokens."),
    "export": ("orchestrator.cli.commands.model_commands:export", "Write a run's model in Hugging Face format."),
    "generate": ("orchestrator.cli.commands.model_commands:generate", "Generate text with a run's model."),
    "checkpoint": (
        "orchestrator.cli.commands.checkpoint_command:checkpoint",
        "List, verify and remove a run's checkpoints.",
    ),
    "drill": (
        "orchestrator.cli.commands.drill_command:drill",
        "Inject real faults into a job and check that it recovers.",
    ),
    "data": ("orchestrator.cli.commands.data_command:data", "Prepare data, and prove what a run consumed."),
    "monitor": ("orchestrator.cli.commands.monitor_command:monitor", "Show runs in Prometheus and Grafana."),
    "doctor": (
        "orchestrator.cli.commands.doctor:doctor",
        "Check this machine and a cluster: what works and what is missing.",
    ),
    "completion": ("orchestrator.cli.completion:completion", "Print the shell completion script."),
}

TRACEBACK_VARIABLE = "CONVOY_TRACEBACK"
"""Set to 1: an unexpected error prints its traceback instead of writing it to a file."""


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

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, but the error for an unknown command suggests similar ones."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            close = difflib.get_close_matches(name, COMMANDS, n=2, cutoff=0.5)
            if name.endswith((".yaml", ".yml")):
                hint = f"to run a job: convoy run {name}"
            elif close:
                hint = f"did you mean {' or '.join(close)}?"
            else:
                hint = "`convoy --help` lists the commands"
            raise click.UsageError(f"there is no command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="convoy")
def cli() -> None:
    """Train language models on clusters that lose nodes.

    \b
    Examples:
      convoy run jobs/quickstart.yaml
      convoy validate job.yaml --set train.lr=1e-3
      convoy show last
      convoy server start && convoy submit job.yaml
      convoy COMMAND --help     explains a command, with examples

    Runs are kept under $CONVOY_HOME (default: ./runs).
    """


def main() -> None:
    """Entry point. Errors of the user are printed as one line and a hint; the exit code is that of the error."""
    stdout = sys.stdout
    try:
        result: object = cli.main(standalone_mode=False, prog_name="convoy")
        # Without standalone mode, click returns the code of `ctx.exit` instead of ending.
        code = result if isinstance(result, int) else 0
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except ConvoyError as error:
        code = error.exit_code
        _say_error(error)
    except SystemExit as error:
        # click replaces stdout and exits with 1 if the reader of our output is gone; use the shell's code instead.
        code = _exit_code(error) if sys.stdout is stdout else 141
    except BrokenPipeError:
        # The reader of our output (`head`) has closed it. What is buffered would raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as error:  # noqa: BLE001  # the last line of defence: every bug is reported and its traceback kept
        code = 1
        _say_unexpected(error)
    sys.exit(code)


def _exit_code(error: SystemExit) -> int:
    return error.code if isinstance(error.code, int) else int(error.code is not None)


def _say_error(error: ConvoyError) -> None:
    if isinstance(error, SpecError):  # every line begins with file:line:column, for people and for editors
        print(error.message, file=sys.stderr)
    else:
        print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    if os.environ.get(TRACEBACK_VARIABLE) == "1":
        traceback.print_exception(error)


def _say_unexpected(error: Exception) -> None:
    text = "".join(traceback.format_exception(error))
    print(f"error: unexpected {type(error).__name__}: {error}", file=sys.stderr)
    if os.environ.get(TRACEBACK_VARIABLE) == "1":
        print(text, file=sys.stderr, end="")
        return
    try:
        with tempfile.NamedTemporaryFile("w", prefix="convoy-", suffix=".txt", delete=False, encoding="utf-8") as file:
            file.write(f"convoy {__version__}, Python {sys.version}\ncommand: {' '.join(sys.argv[1:])}\n\n{text}")
        print(f"This is a bug in Convoy. Its traceback is in {file.name}", file=sys.stderr)
    except OSError:
        print(text, file=sys.stderr, end="")
    print(
        "hint: report it with that file, the job file and the output of `convoy doctor --json`; "
        f"{TRACEBACK_VARIABLE}=1 prints the traceback here",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
