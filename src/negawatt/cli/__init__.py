"""The command line: one file a command, loaded only when that command is called."""

from __future__ import annotations

import importlib
import os
import sys
from typing import NoReturn

import click

from negawatt import __version__
from negawatt.errors import NegawattError, SensorError

COMMANDS = {
    "budgets": "set, list and remove what keys and teams may spend at the server",
    "calibrate": "find out, once, how this machine's power follows its load",
    "carbon": "turn a measurement into carbon, water and cost",
    "cascade": "find how sure a small model has to be before a large one need not be asked",
    "completion": "print the script that completes commands and options in a shell",
    "compress": "make a smaller model by passes, judge it, and keep how it was made",
    "data": "list, pull or show data sets and workloads",
    "doctor": "tell what can be measured and run here, and what to do about the rest",
    "engines": "list engines, or pull a compiled one",
    "export": "write a model in another format, and prove that it is still the model",
    "hotspots": "tell which functions of a program, or layers of a model, spend the joules",
    "keys": "make, list and revoke the keys that open the server",
    "ledger": "check the server's receipts for tampering, or write them to a file",
    "measure": "measure the energy of any command with its children",
    "models": "list, pull or show models",
    "monitor": "export what this machine and everything on it spends, for as long as it runs",
    "profile": "measure joules, latency, memory and quality of a model on a workload",
    "receipts": "add up what requests to the server cost, by key, team, model or day",
    "report": "turn a run into HTML, Markdown or JSON",
    "serve": "serve models to OpenAI's clients, with the joules of every request in its answer",
    "tune": "find the way of running a model that spends the fewest joules, and prove it",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"negawatt.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="negawatt")
def cli() -> None:
    """Find, prove and keep the way of running a language model that spends the fewest joules."""


def main() -> NoReturn:
    """Entry point: user errors become one sentence and an exit code; Ctrl-C becomes 130."""
    try:
        code = cli.main(prog_name="negawatt", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("negawatt: interrupted", err=True)
        sys.exit(130)
    except click.ClickException as exc:
        exc.show()
        sys.exit(exc.exit_code)
    except NegawattError as exc:
        if os.environ.get("NEGAWATT_TRACEBACK"):
            raise
        click.echo(f"negawatt: {exc}", err=True)
        if isinstance(exc, SensorError) and exc.remedy:
            click.echo(f"negawatt: {exc.remedy}", err=True)
        sys.exit(exc.exit_code)
    except KeyboardInterrupt:
        click.echo("negawatt: interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output left; nothing to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
