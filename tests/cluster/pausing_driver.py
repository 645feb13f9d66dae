"""`convoy` with workers and vaults that may pause (see `pauses`), in a process of its own."""

from orchestrator.cli.main import main
from orchestrator.run import launcher
from tests.cluster.pauses import ENTRY, let_runs_pause


def run() -> None:
    """As the command line."""
    let_runs_pause()
    for function in (launcher.run_job, launcher.resume_run):
        # The command line names no entry point: it takes the default, which was bound when the function was.
        values = function.__defaults__ or ()
        function.__defaults__ = tuple(ENTRY if isinstance(value, str) else value for value in values)
    main()


if __name__ == "__main__":
    run()
