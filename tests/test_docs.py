"""Docs cannot rot: every block of code in them is run, or, where that takes minutes, checked word by word.

A block that is not run says so in the line above it: ``<!-- parsed: REASON -->``. Its commands must
still parse (the command exists, its options exist, values are of the right kind) and its Python must
still compile and import names that exist. ``<!-- file: PATH -->`` above a block makes it a file in the
folder where the page's other blocks run.
"""

from __future__ import annotations

import ast
import importlib
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from negawatt.cli import cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
BLOCK = re.compile(
    r"(?:^<!--\s*(?:parsed:\s*(?P<reason>\S[^>]*?)|file:\s*(?P<file>\S+))\s*-->\n)?^```(?P<language>\S*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
PLUMBING = re.compile(r"[|<>]|2>")
LANGUAGES = {"console", "python", "toml", "json", "text"}
NEGAWATT = "import sys; from negawatt.cli import main; sys.argv[0] = 'negawatt'; main()"


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    text: str
    reason: str | None  # why it is not run
    file: str | None  # what it is called, where it is a file

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> list[list[str]]:
        """The words of every ``$`` line up to a pipe or redirection, without comments."""
        joined = self.text.replace("\\\n", " ")
        calls = [
            shlex.split(line[2:], comments=True) for line in joined.splitlines() if line.startswith("$ ")
        ]
        return [list(itertools.takewhile(lambda word: not PLUMBING.match(word), call)) for call in calls]


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text("utf-8")
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start("language")) + 1
            found.append(Block(page, line, match["language"], match["text"], match["reason"], match["file"]))
    return found


BLOCKS = blocks()


def of(*languages: str, run: bool | None = None) -> pytest.MarkDecorator:
    """Parametrize over the blocks of some languages: all, only those run, or only those not run."""
    chosen = [b for b in BLOCKS if b.language in languages and (run is None or (b.reason is None) == run)]
    return pytest.mark.parametrize("block", chosen, ids=str)


def test_every_block_says_what_it_is() -> None:
    assert [str(b) for b in BLOCKS if b.language not in LANGUAGES] == []
    for page in PAGES:
        fences = re.findall(r"^```", page.read_text("utf-8"), re.MULTILINE)
        assert len(fences) == 2 * sum(b.page == page for b in BLOCKS), f"{page.name} has an unclosed block"


def parse(words: list[str]) -> None:
    """Check a call of negawatt against its command without running it."""
    context, command = click.Context(cli), cli
    words = list(words)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        assert found is not None, f"there is no command {words[0]!r}"
        command = found
        words.pop(0)
    try:
        command.make_context("negawatt", words)
    except click.exceptions.Exit:  # --help, --version
        return
    except click.BadParameter as exc:
        # A page may name a folder that the reader has and this machine lacks; anything else is wrong.
        if not (exc.param is not None and isinstance(exc.param.type, click.Path)):
            raise


@of("console")
def test_console_blocks_parse(block: Block) -> None:
    calls = block.commands()
    assert calls, "a console block shows at least one call, after '$ '"
    for words in calls:
        program, *arguments = words
        if program == "negawatt":
            parse(arguments)
        elif "/" in program:
            assert os.access(ROOT / program, os.X_OK), f"{program} is not a program of this repository"
        elif words[:2] == ["pip", "install"]:
            named = re.search(r"negawatt\[([\w,-]+)\]", " ".join(arguments))
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
                "optional-dependencies"
            ]
            assert named is None or set(named[1].split(",")) <= set(extras)
        else:
            assert program in {"git", "cd", "eval"}, f"{program} is not a program this page can promise"


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """A folder for every page, with its files; later blocks see what earlier ones made."""
    folders = {page: tmp_path_factory.mktemp(page.stem) for page in PAGES}
    for block in BLOCKS:
        if block.file:
            target = folders[block.page] / block.file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text, "utf-8")
    return folders


@of("console", run=True)
def test_console_block_runs(block: Block, reader: dict[Path, Path]) -> None:
    for words in block.commands():
        if words[0] != "negawatt":
            continue  # setting up and testing are what is running now
        done = subprocess.run(
            [sys.executable, "-c", NEGAWATT, *words[1:]],
            cwd=reader[block.page],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"


@of("python")
def test_python_blocks_import_what_exists(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text, str(block))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "negawatt":
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


@of("python", run=True)
def test_python_block_runs(block: Block, reader: dict[Path, Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-"],
        input=block.text,
        cwd=reader[block.page],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@of("toml", "json")
def test_data_blocks_parse(block: Block) -> None:
    if block.language == "toml":
        tomllib.loads(block.text)
    elif (block.file or "").endswith(".jsonl"):
        for line in block.text.splitlines():
            json.loads(line)
    else:
        json.loads(block.text)


def test_reference_of_commands_is_current() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/docs.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_page_can_be_reached() -> None:
    """Each page is linked from docs/index.md, and no link within the repository is dead."""
    index = (ROOT / "docs/index.md").read_text("utf-8")
    for page in PAGES:
        if page.parent == ROOT / "docs" and page.name != "index.md":
            assert f"]({page.name})" in index, f"docs/index.md does not link {page.name}"
        prose = BLOCK.sub("", page.read_text("utf-8"))
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links {target}, which is not there"
