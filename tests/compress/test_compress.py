"""Compressing from the outside: the command, recipes, kills, and what users get wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from calling import NEGAWATT, arguments
from click.testing import CliRunner

from negawatt.artifact import Artifact
from negawatt.cli import cli
from negawatt.compress import Recipe, compress, parse
from negawatt.errors import IntegrityError, NegawattError
from negawatt.testing.small_models import TEXT, small_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("small") / "model")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("text") / "text.txt"
    place.write_text(TEXT * 4, "utf-8")
    return place


def recipe(model: Path, text: Path, *passes: str) -> Recipe:
    return Recipe(
        str(model), tuple(map(parse, passes)), str(text), windows=4, heldout=2, length=64, threads=1
    )


# -- what comes out ------------------------------------------------------------------------------------


def test_the_command_tells_what_it_did_and_what_it_cost(model: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = CliRunner().invoke(cli, [*arguments(model, text, output, "rtn:bits=8"), "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    (step,) = document["passes"]
    assert step["parameters"]["bits"] == 8
    assert step["energy"]["provenance"] in ("measured", "derived", "estimated", "missing")
    quality = step["quality"]
    assert quality["nats_low"] <= 0.05
    assert quality["after"] == pytest.approx(quality["before"], rel=0.05)
    assert document["weight_bytes"]["after"] < 0.45 * document["weight_bytes"]["before"]
    made = Artifact.open(output)
    assert made.formats == {"packed"}
    assert made.sha256 == document["sha256"]
    assert [dict(s) for s in made.lineage] == [step]


def test_passes_are_listed_with_their_parameters() -> None:
    listed = json.loads(CliRunner().invoke(cli, ["compress", "--list", "--json"]).stdout)
    assert {"rtn", "gptq"} <= {p["name"] for p in listed}
    assert "bits" in CliRunner().invoke(cli, ["compress", "--list"]).stdout


def test_a_recipe_replays_two_passes_exactly(model: Path, text: Path, tmp_path: Path) -> None:
    first = compress(recipe(model, text, "rtn:bits=8", "gptq:bits=4"), tmp_path / "one", keep_worse=True)
    assert [step["pass"] for step in first["passes"]] == ["rtn", "gptq"]
    again = compress(Recipe.read(tmp_path / "one" / "recipe.toml"), tmp_path / "two", keep_worse=True)
    assert again["sha256"] == first["sha256"]


def test_a_replay_on_another_model_or_text_stops(model: Path, text: Path, tmp_path: Path) -> None:
    compress(recipe(model, text, "rtn"), tmp_path / "one")
    file = tmp_path / "one" / "recipe.toml"
    other = small_model(tmp_path / "other", seed=1)
    content = file.read_text("utf-8")
    file.write_text(content.replace(str(model), str(other)), "utf-8")
    with pytest.raises(IntegrityError, match="the model is not what the recipe"):
        compress(Recipe.read(file), tmp_path / "two")
    changed = tmp_path / "changed.txt"
    changed.write_text(TEXT[::-1] * 8, "utf-8")
    file.write_text(content.replace(str(text), str(changed)), "utf-8")
    with pytest.raises(NegawattError, match=r"the text is not what|language"):
        compress(Recipe.read(file), tmp_path / "three")


def test_a_process_killed_at_any_moment_is_resumed_to_the_same_bits(
    model: Path, text: Path, tmp_path: Path
) -> None:
    whole = compress(recipe(model, text, "gptq:bits=3"), tmp_path / "whole", keep_worse=True)
    output = tmp_path / "killed"
    command = [*NEGAWATT, *arguments(model, text, output, "gptq:bits=3"), "--keep-worse"]
    worker = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    steps = tmp_path / "killed.partial" / "1-gptq"
    deadline = time.monotonic() + 60
    while not list(steps.glob("step-0001*")) and worker.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert not output.exists()
    resumed = compress(recipe(model, text, "gptq:bits=3"), output, keep_worse=True)
    assert resumed["sha256"] == whole["sha256"]


def test_text_that_the_model_writes_is_the_same_every_time(
    model: Path, tmp_path: Path, fresh_home: Path
) -> None:
    asked = Recipe(str(model), (parse("gptq"),), windows=3, heldout=1, length=32, threads=1)
    first = compress(asked, tmp_path / "one", keep_worse=True)
    for kept in (fresh_home / "cache" / "written").iterdir():
        kept.unlink()
    assert compress(asked, tmp_path / "two", keep_worse=True)["sha256"] == first["sha256"]
