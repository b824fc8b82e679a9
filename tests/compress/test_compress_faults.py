"""What users get wrong, and what goes wrong on its own: one sentence, an exit code, nothing half-written."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from pathlib import Path

import pytest
from calling import NEGAWATT, arguments, message, sentence

from negawatt.compress import Recipe, compress, parse
from negawatt.errors import Infeasible, NegawattError, RunError, UsageError, WorkloadError
from negawatt.testing.pass_contract import spoil
from negawatt.testing.small_models import TEXT, small_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("small") / "model")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("text") / "text.txt"
    place.write_text(TEXT * 4, "utf-8")
    return place


def full_disk() -> None:
    """From now on no file may grow beyond 20 kB in this process, as if the disk were full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def recipe(model: Path, text: Path, *passes: str) -> Recipe:
    return Recipe(
        str(model), tuple(map(parse, passes)), str(text), windows=4, heldout=2, length=64, threads=1
    )


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
    place.write_text("A few words.", "utf-8")
    code, sentence = message(model, place, tmp_path / "out", "gptq")
    assert code == 1
    assert "at least 2 windows of 64 are needed" in sentence
    place.write_text("", "utf-8")
    with pytest.raises(NegawattError, match="at least 2 windows of 64 are needed") as refused:
        compress(recipe(model, place, "gptq"), tmp_path / "out")
    assert refused.value.exit_code == 1
    place.write_text("Ωριγένης ὁ Ἀδαμάντιος ἐν Ἀλεξανδρείᾳ " * 40, "utf-8")
    unknown = "is in a language that the tokenizer of model does not know: a token holds 1.0 bytes"
    with pytest.raises(NegawattError, match=unknown) as refused:
        compress(recipe(model, place, "gptq"), tmp_path / "out")
    assert refused.value.exit_code == 1
    place.write_bytes(b"\xff\xfe\x00 not text" * 100)
    with pytest.raises(WorkloadError, match="not UTF-8"):
        compress(recipe(model, place, "gptq"), tmp_path / "out")
    with pytest.raises(UsageError, match="no text file, no workload"):
        compress(recipe(model, tmp_path / "absent", "gptq"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


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
    done = subprocess.run(
        [*NEGAWATT, *arguments(model, text, tmp_path / "out", "rtn")], capture_output=True, text=True,
        check=False, preexec_fn=full_disk, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "cannot write" in line
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("**/*.safetensors"))


# -- ratios, recipes, layers, damage -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt", "lowrank", "svd"])
@pytest.mark.parametrize("ratio", ["0", "1", "1.5", "-0.5", "nan", "half"])
def test_a_ratio_that_makes_no_sense_gets_a_sentence(name: str, ratio: str) -> None:
    with pytest.raises(UsageError, match=f"{name}: ratio must be a number above 0 and below 1, not {ratio}"):
        parse(f"{name}:ratio={ratio}")


@pytest.mark.parametrize("ratio", ["0", "1", "1.5"])
def test_a_ratio_that_drops_no_layer_or_all_is_wrong_usage(
    ratio: str, model: Path, text: Path, tmp_path: Path
) -> None:
    code, words = message(model, text, tmp_path / "out", f"depth:ratio={ratio}")
    assert code == 2
    assert "ratio" in words


def test_a_recipe_of_a_newer_version_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("schema = 99\n", "utf-8")
    given = ["compress", "--recipe", str(tmp_path / "recipe.toml"), "-o", str(tmp_path / "out")]
    code, words = sentence([*NEGAWATT, *given], tmp_path / "out")
    assert code == 2
    assert "has schema 99, newer than this Negawatt reads (1); update Negawatt" in words


def test_layers_of_an_unknown_kind_are_named(text: Path, tmp_path: Path) -> None:
    """Mamba's blocks hold convolutions, which passes for matrices must not skip in silence."""
    import transformers

    model = small_model(tmp_path / "model")
    config = transformers.MambaConfig(
        hidden_size=64, state_size=4, num_hidden_layers=2, vocab_size=416, time_step_rank=4
    )
    transformers.MambaForCausalLM(config).save_pretrained(model)
    code, words = message(model, text, tmp_path / "out", "rtn")
    assert code == 1
    assert "a kind of layer that no pass here knows" in words


def test_weights_that_are_no_numbers_are_named(text: Path, tmp_path: Path) -> None:
    model = small_model(tmp_path / "model")
    spoil(model)
    code, words = message(model, text, tmp_path / "out", "rtn")
    assert code == 1
    assert "holds NaN or infinite values; fetch or make the model again" in words


def test_a_tampered_checkpoint_is_not_built_upon(model: Path, text: Path, tmp_path: Path) -> None:
    compress(recipe(model, text, "rtn:bits=8"), tmp_path / "made")
    file = tmp_path / "made" / "packed.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    code, words = message(tmp_path / "made", text, tmp_path / "out", "rtn:bits=4")
    assert code == 1
    assert "packed.safetensors" in words
    assert "sha256" in words


@pytest.mark.parametrize("form", ["checkpoint", "gguf"])
def test_a_full_disk_at_export_is_one_sentence_and_leaves_nothing(
    form: str, model: Path, text: Path, tmp_path: Path, fresh_home: Path
) -> None:
    compress(recipe(model, text, "rtn:bits=8"), tmp_path / "made")
    program = f"from negawatt.artifact import Artifact; Artifact.open({str(tmp_path / 'made')!r}).{form}()"
    wrapped = (
        "import sys\nfrom negawatt.errors import NegawattError\n"
        f"try:\n    {program}\nexcept NegawattError as exc:\n    sys.exit(str(exc))"
    )
    done = subprocess.run(
        [NEGAWATT[0], "-c", wrapped], capture_output=True, text=True, check=False, preexec_fn=full_disk,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "cannot write" in line
    assert not [each for each in fresh_home.rglob("*") if each.is_file() and each.name != "lock"]
