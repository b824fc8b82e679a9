"""`negawatt completion`: print the script that completes commands and options in a shell."""

from __future__ import annotations

import click

from negawatt.cli.common import examples


@click.command(
    epilog=examples(
        'eval "$(negawatt completion bash)"    # in ~/.bashrc',
        'eval "$(negawatt completion zsh)"     # in ~/.zshrc',
        "negawatt completion fish > ~/.config/fish/completions/negawatt.fish",
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the script that completes negawatt's commands and options in SHELL."""
    from click.shell_completion import get_completion_class

    from negawatt.cli import cli

    script = get_completion_class(shell)
    assert script is not None  # click ships all three
    click.echo(script(cli, {}, "negawatt", "_NEGAWATT_COMPLETE").source())
