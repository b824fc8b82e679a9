"""Compressing from the outside: the command, recipes, kills, and what users get wrong."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from negawatt.artifact import Artifact
from negawatt.cli import cli
from negawatt.compress import Recipe, compress, parse
from negawatt.errors import Infeasible, IntegrityError, NegawattError, RunError, UsageError, WorkloadError
from negawatt.testing.small_models import TEXT, small_model

NEGAWATT = [sys.executable, "-c", "from negawatt.cli import main; main()"]


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


def arguments(model: Path, text: Path, output: Path, *passes: str) -> list[str]:
    given = ["compress", str(model), "--calibration", str(text), "--windows", "4", "--heldout", "2"]
    given += ["--length", "64", "--threads", "1", "-o", str(output)]
    return given + [word for each in passes for word in ("--pass", each)]


def message(model: Path, text: Path, output: Path, *passes: str) -> tuple[int, str]:
    """Exit code and the one sentence of a call that fails."""
    done = subprocess.run(
        [*NEGAWATT, *arguments(model, text, output, *passes)], capture_output=True, text=True, check=False
    )
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert not output.exists()
    return done.returncode, lines[0]


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


# -- what users get wrong ------------------------------------------------------------------------------


def test_a_group_that_does_not_divide_names_those_that_do(text: Path, tmp_path: Path) -> None:
    narrow = small_model(tmp_path / "narrow", hidden_size=96, head_dim=24)
    code, sentence = message(narrow, text, tmp_path / "out", "gptq:group=64")
    assert code == 2
    assert "group 64 does not divide the 96 inputs" in sentence
    assert "use 16 or 32" in sentence


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("nonsense", "no pass is called 'nonsense'; there are"),
        ("rtn:bits=5", "bits must be one of 2, 3, 4, 8, not 5"),
        ("rtn:depth=1", "no parameter 'depth'; it has bits"),
        ("rtn:bits", "written key=value"),
        ("rtn:bits=4,bits=8", "given twice"),
        ("gptq:damping=0", "a number above 0 and below 1, not 0"),
        ("gptq:damping=1.5", "a number above 0 and below 1, not 1.5"),
        ("gptq:damping=nan", "a number above 0"),
        ("gptq:symmetric=perhaps", "true or false, not perhaps"),
    ],
)
def test_a_wrong_pass_or_parameter_is_one_sentence(given: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        parse(given)


def test_text_too_short_empty_or_foreign_is_refused(model: Path, text: Path, tmp_path: Path) -> None:
    place = tmp_path / "text.txt"
    for content in ("", "A few words."):
        place.write_text(content, "utf-8")
        code, sentence = message(model, place, tmp_path / "out", "gptq")
        assert code == 1
        assert "at least 2 windows of 64 are needed" in sentence
    place.write_text("Ωριγένης ὁ Ἀδαμάντιος ἐν Ἀλεξανδρείᾳ " * 40, "utf-8")
    with pytest.raises(WorkloadError, match="a language that the tokenizer"):
        compress(recipe(model, place, "gptq"), tmp_path / "out")
    place.write_bytes(b"\xff\xfe\x00 not text" * 100)
    with pytest.raises(WorkloadError, match="not UTF-8"):
        compress(recipe(model, place, "gptq"), tmp_path / "out")
    with pytest.raises(UsageError, match="no text file, no workload"):
        compress(recipe(model, tmp_path / "absent", "gptq"), tmp_path / "out")


def test_an_encoder_is_told_to_bring_text(tmp_path: Path, text: Path) -> None:
    encoder = small_model(tmp_path / "encoder", "bert")
    asked = Recipe(str(encoder), (parse("rtn"),), length=32, threads=1)
    with pytest.raises(UsageError, match="does not write text"):
        compress(asked, tmp_path / "out")


def test_a_calibrated_pass_that_rounding_beats_keeps_nothing(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from negawatt.compress.gptq import Gptq

    monkeypatch.setattr(Gptq, "fallback", lambda self: Gptq(**self.values))  # cannot be beaten, only equalled
    with pytest.raises(Infeasible, match=r"nothing was kept.*--keep-worse"):
        compress(recipe(model, text, "gptq:bits=2"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    compress(recipe(model, text, "gptq:bits=2"), tmp_path / "out", keep_worse=True)


def test_recipes_of_the_future_and_nonsense_are_refused(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    for content, expected in (
        ("schema = 99\n", "newer than this Negawatt reads"),
        ("schema = 'one'\n", "whole number"),
        ("schema = 1\nmodel = 'x'\nmood = 3\n[[pass]]\nname = 'rtn'\n", "unknown field 'mood'"),
        ("schema = 1\nmodel = 'x'\n", "no recipe"),
        ("schema = 1\nmodel = 'x'\n[[pass]]\nname = 'rtn'\nbits = 5\n", "bits must be one of"),
        ("schema = ", "not TOML"),
    ):
        file.write_text(content, "utf-8")
        with pytest.raises(UsageError, match=expected):
            Recipe.read(file)
    with pytest.raises(UsageError, match="cannot read"):
        Recipe.read(tmp_path / "absent.toml")


def test_an_output_in_the_way_and_work_of_another_call_are_left_alone(
    model: Path, text: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        compress(recipe(model, text, "rtn"), tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "mine"
    from negawatt.run import Run

    Run.create("compress", path=tmp_path / "new.partial", recipe="another").close()
    with pytest.raises(RunError, match="unfinished work of another call"):
        compress(recipe(model, text, "rtn"), tmp_path / "new")


def test_pickled_weights_are_refused(model: Path, text: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text((model / "config.json").read_text())
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    code, sentence = message(pickled, text, tmp_path / "out", "rtn")
    assert code == 1
    assert "pickled weights" in sentence


def test_a_full_disk_is_one_sentence_and_leaves_no_output(model: Path, text: Path, tmp_path: Path) -> None:
    """No file may grow beyond 20 kB in this process, as if the disk were full."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = subprocess.run(
        [*NEGAWATT, *arguments(model, text, tmp_path / "out", "rtn")], capture_output=True, text=True,
        check=False, preexec_fn=limit, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "cannot write" in line
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("**/*.safetensors"))
