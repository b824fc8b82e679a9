"""What every command keeps: help with examples, JSON, exit codes, one sentence for a mistake."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from negawatt.cli import COMMANDS, cli, main

NEGAWATT = [sys.executable, "-c", "from negawatt.cli import main; main()"]
NO_JSON = {"completion"}  # it prints a script for a shell, nothing for a program


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Outcome]:
    """Call the command line's real entry point in this process, with an empty NEGAWATT_HOME."""
    monkeypatch.setenv("NEGAWATT_HOME", str(tmp_path / "home"))

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["negawatt", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        return Outcome(int(exit_.value.code or 0), out, err)

    return run


def leaves() -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, with the words that call it."""
    context = click.Context(cli)
    todo = [((name,), cli.get_command(context, name)) for name in cli.list_commands(context)]
    while todo:
        words, command = todo.pop(0)
        if isinstance(command, click.Group):
            todo += [((*words, name), child) for name, child in command.commands.items()]
        else:
            assert command is not None
            yield " ".join(words), command


LEAVES = dict(leaves())
every_command = pytest.mark.parametrize("words", LEAVES)


@every_command
def test_help_explains_and_gives_examples(words: str, call: Callable[..., Outcome]) -> None:
    code, out, err = call(*words.split(), "--help")
    assert (code, err) == (0, "")
    assert "Examples:" in out
    assert f"negawatt {words}" in out.split("Examples:")[1], "the examples call another command"
    silent = [p.opts[-1] for p in LEAVES[words].params if isinstance(p, click.Option) and not p.help]
    assert not silent, f"options without a word of help: {silent}"


@every_command
def test_every_command_speaks_json(words: str) -> None:
    options = {name for p in LEAVES[words].params for name in p.opts}
    assert ("--json" in options) == (words not in NO_JSON)


@every_command
def test_unknown_option_is_wrong_usage(words: str, call: Callable[..., Outcome]) -> None:
    code, out, err = call(*words.split(), "--no-such-option")
    assert code == 2
    assert "--no-such-option" in err
    assert out == ""


def test_help_lists_every_command(call: Callable[..., Outcome]) -> None:
    code, out, _ = call("--help")
    assert code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in out


def test_unknown_command_is_wrong_usage(call: Callable[..., Outcome]) -> None:
    code, out, err = call("tuen")
    assert (code, out) == (2, "")
    assert "tuen" in err


MISTAKES = {
    "report of nothing": ["report", "no/such/run"],
    "profile of nothing": ["profile", "no/such/model", "--workload", "offline"],
    "tune of nothing": ["tune", "no/such/model", "--workload", "offline"],
    "unknown model": ["models", "show", "no-such-model"],
    "pull of an unknown model": ["models", "pull", "no-such-model"],
    "unknown data": ["data", "show", "no-such-data"],
    "pull of unknown data": ["data", "pull", "no-such-data"],
    "unknown engine": ["engines", "pull", "no-such-engine"],
    "measure of nothing": ["measure", "--", "no-such-program"],
}


@pytest.mark.parametrize("arguments", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_gets_one_sentence(
    arguments: list[str], call: Callable[..., Outcome], tmp_path: Path
) -> None:
    code, out, err = call(*arguments)
    assert code in (1, 2, 127)  # 127: `measure` passes on what a shell says of a program that is not there
    assert out == ""
    assert err.startswith("negawatt: ") or err.startswith("Usage: ")
    assert "Traceback" not in err
    if err.startswith("negawatt: "):
        assert err.count("\n") == 1, "more than one line for one mistake"
        # Without any engine installed, what is wrong is not what came but what is not here.
        named = any(word in err for word in arguments) or "negawatt doctor" in err
        assert named, "the sentence does not name what came"
    home = tmp_path / "home"
    left = [p for p in home.rglob("*") if p.is_file() and p.name != "lock"] if home.exists() else []
    assert not left, "something was left behind"


def test_listings_are_one_json_document(call: Callable[..., Outcome]) -> None:
    for words in ("models list", "data list", "engines list"):
        code, out, _ = call(*words.split(), "--json")
        assert code == 0
        assert json.loads(out), words


# -- the program itself ------------------------------------------------------------------------------


def test_interrupt_is_130_without_a_traceback() -> None:
    sleeper = [
        "measure",
        "--",
        sys.executable,
        "-c",
        "import time; print('ready', flush=True); time.sleep(60)",
    ]
    process = subprocess.Popen(
        [*NEGAWATT, *sleeper],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the command and its children
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "negawatt/cli" not in err, "a traceback of ours"


def test_a_reader_that_leaves_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        [*NEGAWATT, "--help"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert process.returncode == 1
    assert process.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_is_accepted_by_its_shell(shell: str, call: Callable[..., Outcome]) -> None:
    code, script, _ = call("completion", shell)
    assert code == 0
    assert f"_NEGAWATT_COMPLETE={shell}_complete" in script
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("negawatt tu", "tune"),
        ("negawatt models pu", "pull"),
        ("negawatt doctor --js", "--json"),
        ("negawatt tune x --strategy nsg", "nsga2"),
    ],
)
def test_completion_offers_commands_and_options(typed: str, offered: str) -> None:
    environment = os.environ | {
        "_NEGAWATT_COMPLETE": "bash_complete",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split()) - 1),
    }
    process = subprocess.run(NEGAWATT, env=environment, capture_output=True, text=True, check=False)
    assert f"plain,{offered}" in process.stdout.splitlines()
