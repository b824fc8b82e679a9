"""Where a token's joules go, and what each pass is foretold to leave of them."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from negawatt.artifact import Artifact
from negawatt.artifact.shape import ModelShape
from negawatt.compress import PASSES, parse, technique
from negawatt.compress.dissection import Dissection, dissect, streamed
from negawatt.compress.effect import Situation, unpacked
from negawatt.compress.explain import explain, foretold
from negawatt.engine import Settings
from negawatt.errors import UsageError
from negawatt.testing.small_models import small_model

SHAPE = ModelShape("llama", 30, 576, 9, 3, 64, 1536, 49152, 134_515_008, True, 8192)
STEP = Dissection(
    Settings(engine="llamacpp"), SHAPE, 0.004, 0.001, 0.001, 0.0005, 1e-6, 0.0004,
    4.5, 60e6, 30e6, 20e9, (0.01,),
)  # fmt: skip


def at(engine: str = "llamacpp", bits: float = 4.5) -> Situation:
    return Situation(SHAPE, engine, bits, 60e6 * bits / 4.5, 30e6)


def ratio(text: str, batch: int = 1, engine: str = "llamacpp", bits: float = 4.5) -> float:
    step = dataclasses.replace(STEP, settings=Settings(engine=engine, batch=batch))
    return foretold(step, parse(text).effect(at(engine, bits)))


def test_parts_make_the_token() -> None:
    assert STEP.token_s == pytest.approx(math.fsum(STEP.parts.values()))
    assert STEP.bound == "weights"
    assert dataclasses.replace(STEP, settings=Settings(batch=64)).bound == "arithmetic"


def test_a_model_of_half_the_layers_costs_the_head_and_half_the_rest() -> None:
    found = parse("depth:ratio=0.5").effect(at())
    assert found.read == pytest.approx((30 + 30) / 90)
    assert found.start == found.context == 0.5
    assert 0.5 < ratio("depth:ratio=0.5") < 0.75


def test_fewer_bits_save_where_weights_are_read_and_not_where_they_are_shared() -> None:
    alone, shared = (ratio("rtn:bits=4", batch, bits=8.5) for batch in (1, 64))
    assert alone < 0.85
    assert alone < shared < 1.0


@pytest.mark.parametrize("text", ["magnitude", "wanda", "sparsegpt", "heal"])
def test_what_changes_values_only_saves_nothing(text: str) -> None:
    found = parse(text).effect(at())
    assert not found.saves
    assert found.why
    assert ratio(text) == pytest.approx(1.0)


def test_an_engine_that_cannot_hold_a_form_gains_nothing_by_it() -> None:
    assert ratio("rtn:bits=4", engine="transformers", bits=32) == pytest.approx(1.0)
    assert ratio("lowrank:ratio=0.3") == pytest.approx(1.0)
    made_anew = dataclasses.replace(at(bits=8.5), weights="q8_0")
    assert not parse("rtn:bits=4").effect(made_anew).saves
    assert ratio("rtn:bits=3") > 1.0  # no 3-bit grid: it runs unpacked, in more bytes than before


def test_a_packed_source_comes_out_in_32_bits_unless_a_quantizer_follows() -> None:
    cut = parse("depth:ratio=0.3").effect(at())
    assert not cut.packs
    assert foretold(STEP, cut) < 1 < foretold(STEP, unpacked(at(), cut))
    assert parse("rtn:bits=4").effect(at()).packs


def test_every_pass_says_what_it_does_here() -> None:
    for name in PASSES:
        effect = technique(name)().effect(at())
        assert effect.why, name
        assert all(
            x > 0 for x in (effect.read, effect.unpack, effect.arithmetic, effect.start, effect.context)
        )


def test_memory_is_read_at_a_plausible_pace() -> None:
    assert 1e8 < streamed(8_000_000) < 1e12


def test_a_small_model_is_taken_apart_and_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = Artifact.open(str(small_model(tmp_path / "model", head_dim=64, num_hidden_layers=2)))
    settings = Settings(engine="transformers", weight_format="fp32", threads=1, batch=2)
    taken: list[Dissection] = []

    def kept(*asked: Any) -> Dissection:
        taken.append(dissect(*asked))
        return taken[-1]

    monkeypatch.setattr("negawatt.compress.explain.dissect", kept)
    document = explain(artifact, settings, [parse("rtn"), parse("depth:ratio=0.5")])
    (found,) = taken
    assert found.token_s > 0
    assert min(found.read_s, found.unpack_s, found.start_s) >= 0
    # Of a model as narrow as its twin, most that a step costs once is starting operations.
    assert found.start_s > 0.5 * (found.read_s + found.unpack_s + found.start_s)
    assert json.loads(json.dumps(document))["verdict"]
    best, worst = document["passes"]
    assert best["pass"].startswith("depth")
    assert best["saves"]
    assert not worst["saves"]


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model", "bert")
    with pytest.raises(UsageError, match="token by token"):
        explain(str(model), Settings())
    command = [sys.executable, "-c", "from negawatt.cli import main; main()"]
    command += ["compress", str(model), "--explain", "transformers"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "token by token" in done.stderr
