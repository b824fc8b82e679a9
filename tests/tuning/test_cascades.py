"""A search over a large and a small classifier finds that the small one may answer what it is sure of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from negawatt.compress import Recipe, compress, parse
from negawatt.engine import Settings
from negawatt.profiling.cascade import Cascade
from negawatt.report import render
from negawatt.testing.small_models import small_model
from negawatt.testing.small_workload import small_workload
from negawatt.tuning import Constraints, Space, tune
from negawatt.tuning.ablation import path
from negawatt.tuning.candidate import Candidate, Escalation
from negawatt.tuning.material import Material
from negawatt.workload import ClassifyItem, Workload
from negawatt.workload.writer import write_workload

SETTINGS = Settings(engine="openvino", weight_format="f16", threads=1, max_context=64)
SPACE = Space(
    ("openvino",), (1,), (1,), 64, {"openvino": ("f16",)}, kv_caches={"openvino": ("default",)},
    speculation=("none",),
)  # fmt: skip
"""An engine that is loaded in a moment: a search opens some twenty."""
STRANGE = {"warm": "kettle coin gull fed", "cold": "boats key nine cart"}
"""Words that the small model never saw."""


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the small model learns from, and that with a fourth as many texts of strange words among it."""
    place = tmp_path_factory.mktemp("texts")
    known = Workload.open(small_workload(place / "known", 240))
    strange = []
    for number, item in enumerate(known.quality[:60]):
        assert isinstance(item, ClassifyItem)
        words = STRANGE[item.answer].split()
        prompt = " ".join(words[(number + n) % len(words)] for n in range(2 + number % 4))
        strange.append(replace(item, id=f"strange-{number}", prompt=prompt))
    whole = replace(known, name="both", quality=(*known.quality, *strange))
    return {"known": place / "known", "both": write_workload(whole, place / "both")}


@pytest.fixture(scope="module")
def models(texts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A large classifier that learnt from all texts, and a small one that never saw the strange words."""
    place = tmp_path_factory.mktemp("models")
    large = {"num_hidden_layers": 6, "hidden_size": 256, "intermediate_size": 4096}
    plans = {
        "teacher": (small_model(place / "l", "bert", seed=1, **large), 5, texts["both"]),
        "student": (small_model(place / "s", "bert", num_hidden_layers=1), 0, texts["known"]),
    }
    for name, (model, frozen, learnt) in plans.items():
        technique = parse(f"classifier:epochs=6,batch=8,rate=0.002,frozen={frozen}")
        recipe = Recipe(str(model), (technique,), str(learnt), windows=4, heldout=2, length=64, threads=1)
        compress(recipe, place / name, keep_worse=True)
    return str(place / "teacher"), str(place / "student")


def searched(models: tuple[str, str], texts: Path, drop: float, run: Path) -> dict[str, Any]:
    teacher, student = models
    return tune(
        teacher, str(texts), models=(student,), space=SPACE, baseline=SETTINGS, time_budget_s=200,
        constraints=Constraints(max_quality_drop=drop), path=run,
    )  # fmt: skip


def test_a_small_classifier_beside_a_large_one(
    models: tuple[str, str], texts: dict[str, Path], tmp_path: Path
) -> None:
    """Where the small one is good enough by itself, it answers alone."""
    found = searched(models, texts["known"], 0.5, tmp_path / "run")
    assert found["baseline"]["unit"] == "answer"
    assert found["verdict"]["accepted"], found["verdict"]["text"]
    assert "fewer joules per answer than" in found["verdict"]["text"]
    assert found["best"]["artifact"] == "student"
    assert found["verdict"]["ratio"]["low"] > 1.5
    assert found["best"]["quality"]["metric"] == "accuracy"


def test_a_cascade_is_proved_and_kept(
    models: tuple[str, str], texts: dict[str, Path], tmp_path: Path
) -> None:
    found = searched(models, texts["both"], 0.06, tmp_path / "run")
    text = found["verdict"]["text"]
    assert found["verdict"]["accepted"], text
    assert "and where its answer leads by less than" in text
    assert found["best"]["cascade"]["threshold"] > 0
    assert found["best"]["artifact"] == "student + teacher"
    assert found["verdict"]["ratio"]["low"] > 1
    assert found["best"]["quality"]["value"] > 0.9
    levers = [row["lever"] for row in found["waterfall"] if row.get("lever")]
    assert levers[-1:] == ["cascade"] or found["waterfall"] == found["phases"]
    items = Workload.open(str(texts["both"])).quality[-20:]
    with Cascade.read(Path(found["artifact"])) as kept:
        answers = kept.answered(items)
    assert sum(step.sequences for step in answers.steps) > len(items)  # strange words are passed on
    assert "in doubt" in render(tmp_path / "run", "markdown").replace("\N{NO-BREAK SPACE}", " ")


def test_a_cascade_survives_its_record() -> None:
    small = Candidate(
        SETTINGS, model="student", escalation=Escalation(0.75, Candidate(SETTINGS.replace(batch=4)))
    )
    assert Candidate.from_json(json.loads(json.dumps(small.to_json()))) == small
    assert [each.model for each in small.parts] == ["student", ""]
    assert small.arithmetic != small.parts[0].arithmetic
    assert "leads by less than 0.75 nats" in str(small)
    steps = path(Candidate(SETTINGS), small)
    assert [step.lever for step in steps] == ["", "batch", "cascade"]
    assert steps[-1].candidate == small


def test_thresholds_are_not_chosen_on_what_proves_them(texts: dict[str, Path]) -> None:
    workload = Workload.open(str(texts["both"]))
    several = Material.of(workload, replace(SPACE, models=("", "student")), 0)
    chosen, held = ({item.id for item in part} for part in (several.threshold_items, several.held_items))
    assert not chosen & held
    assert len(chosen) > len(several.search_items)
    one = Material.of(workload, SPACE, 0)
    assert {i.id for i in one.threshold_items} == {i.id for i in one.search_items}


def test_what_is_held_back_is_not_searched_with(texts: dict[str, Path]) -> None:
    material = Material.of(Workload.open(str(texts["known"])), SPACE, 0)
    searched, held = ({item.id for item in part} for part in (material.searched, material.held))
    assert searched and held and not searched & held
    assert searched == {item.id for item in material.search_items}
