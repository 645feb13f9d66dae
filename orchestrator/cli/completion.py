"""`convoy completion`: scripts that complete commands, options and run ids."""

import os
from pathlib import PurePath

import click
from click.shell_completion import get_completion_class

from orchestrator.domain.errors import UsageError

SHELLS = ("bash", "zsh", "fish")

_INSTALL = {
    "bash": "convoy completion bash > ~/.local/share/bash-completion/completions/convoy",
    "zsh": "convoy completion zsh > ~/.zfunc/_convoy    # with fpath+=~/.zfunc before compinit in ~/.zshrc",
    "fish": "convoy completion fish > ~/.config/fish/completions/convoy.fish",
}


@click.command()
@click.argument("shell", required=False, type=click.Choice(SHELLS))
def completion(shell: str | None) -> None:
    """Print the shell completion script.

    SHELL defaults to the one in $SHELL. Commands, options and run ids complete.

    \b
    Examples:
      eval "$(convoy completion bash)"     in this shell only
      convoy completion bash > ~/.local/share/bash-completion/completions/convoy
      convoy completion zsh > ~/.zfunc/_convoy
      convoy completion fish > ~/.config/fish/completions/convoy.fish
    """
    from orchestrator.cli.main import cli

    shell = shell or PurePath(os.environ.get("SHELL", "")).name
    if shell not in SHELLS:
        raise UsageError(
            f"no completion for the shell {shell!r}" if shell else "which shell?",
            hint=f"name one of {', '.join(SHELLS)}: convoy completion bash",
        )
    found = get_completion_class(shell)
    if found is None:
        raise UsageError(f"this version of click has no completion for {shell}")
    script = found(cli, {}, "convoy", "_CONVOY_COMPLETE").source()
    click.echo(script)
    # Last: zsh wants its `#compdef` on the first line.
    click.echo(f"# Install: {_INSTALL[shell]}")
