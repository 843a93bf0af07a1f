"""completion."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the shell completion script.

    \b
    eval "$(edgephi completion bash)"       in ~/.bashrc
    eval "$(edgephi completion zsh)"        in ~/.zshrc
    edgephi completion fish > ~/.config/fish/completions/edgephi.fish
    """
    from click.shell_completion import get_completion_class

    from toolkit.cli import cli, render

    found = get_completion_class(shell)
    assert found is not None
    render.text(found(cli, {}, "edgephi", "_EDGEPHI_COMPLETE").source() + "\n")
