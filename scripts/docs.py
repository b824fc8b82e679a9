"""Write docs/commands.md from the commands themselves; with ``--check``, only say whether it is current.

.venv/bin/python scripts/docs.py
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from negawatt.cli import cli

TARGET = Path(__file__).parent.parent / "docs" / "commands.md"
HEAD = """\
# Commands

Written from the commands' own help by `scripts/docs.py`; change the help, not this page.

Every command takes `--help`. `--json` prints one JSON document on standard output and everything else on
standard error. Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted; `measure` passes on the exit
code of what it measured.
"""


def leaves(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, with the words that call it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from leaves(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


def plain(text: str | None) -> str:
    """Help as running text: no marks for click's wrapping, no indentation."""
    lines = (line.strip() for line in (text or "").replace("\b", "").strip().splitlines())
    return "\n".join(lines)


def section(words: str, command: click.Command) -> str:
    """One command: what it does, its arguments and options, its examples."""
    context = click.Context(command, info_name=words)
    usage = " ".join(piece for piece in command.collect_usage_pieces(context))
    parts = [f"## negawatt {words}", f"`negawatt {words} {usage}`", plain(command.help)]
    rows = []
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            record = parameter.get_help_record(context)
            assert record is not None
            names, meaning = (" ".join(text.split()).replace("|", "\\|") for text in record)
            rows.append(f"| `{names}` | {meaning} |")
    if rows:
        parts.append("\n".join(["| option | meaning |", "|---|---|", *rows]))
    if command.epilog:
        calls = [
            line.split("  #")[0].strip() for line in plain(command.epilog).splitlines() if line != "Examples:"
        ]
        parts.append(
            "\n".join(["<!-- parsed: shown by --help -->", "```console", *(f"$ {c}" for c in calls), "```"])
        )
    return "\n\n".join(parts)


def render() -> str:
    """The whole page."""
    return "\n\n".join([HEAD.strip(), *(section(words, command) for words, command in leaves(cli))]) + "\n"


def main() -> int:
    page = render()
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(page, "utf-8")
        return 0
    if TARGET.is_file() and TARGET.read_text("utf-8") == page:
        return 0
    print(f"{TARGET.name} is out of date; write it anew: .venv/bin/python scripts/docs.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
