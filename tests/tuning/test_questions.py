"""A search whose joules are counted on answers: a large classifier, and a small one that learnt from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from negawatt.compress import Recipe, compress, parse
from negawatt.engine import Settings
from negawatt.testing.small_models import small_model
from negawatt.testing.small_workload import small_workload
from negawatt.tuning import Constraints, Space, tune
from negawatt.tuning.material import Material
from negawatt.workload import Workload

SETTINGS = Settings(engine="transformers", weight_format="fp32", threads=1, max_context=64)
SPACE = Space(
    ("transformers",), (1,), (1,), 64, {"transformers": ("fp32",)}, kv_caches={"transformers": ("default",)},
    speculation=("none",),
)  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_workload(tmp_path_factory.mktemp("texts"), 160)


def made(model: Path, technique: str, texts: Path, output: Path) -> str:
    recipe = Recipe(str(model), (parse(technique),), str(texts), windows=4, heldout=2, length=64, threads=1)
    compress(recipe, output, keep_worse=True)
    return str(output)


def test_a_small_classifier_beside_a_large_one(texts: Path, tmp_path: Path) -> None:
    large = {"num_hidden_layers": 8, "hidden_size": 256, "intermediate_size": 1024}
    teacher = made(
        small_model(tmp_path / "large", "bert", seed=1, **large),
        "classifier:epochs=4,batch=8,rate=0.001,frozen=7", texts, tmp_path / "teacher",
    )  # fmt: skip
    student = made(
        small_model(tmp_path / "small", "bert", num_hidden_layers=1),
        f"distil:teacher={teacher},labels=0,epochs=8,batch=8,rate=0.002", texts, tmp_path / "student",
    )  # fmt: skip
    found = tune(
        teacher, str(texts), models=(student,), space=SPACE, baseline=SETTINGS, time_budget_s=90,
        constraints=Constraints(max_quality_drop=0.5), path=tmp_path / "run",
    )  # fmt: skip
    assert found["baseline"]["unit"] == "answer"
    assert found["verdict"]["accepted"], found["verdict"]["text"]
    assert "fewer joules per answer than" in found["verdict"]["text"]
    assert found["best"]["artifact"] == "student"
    assert found["verdict"]["ratio"]["low"] > 1.5
    assert found["best"]["quality"]["metric"] == "accuracy"


def test_what_is_held_back_is_not_searched_with(texts: Path) -> None:
    material = Material.of(Workload.open(str(texts)), SPACE, 0)
    searched, held = ({item.id for item in part} for part in (material.searched, material.held))
    assert searched and held and not searched & held
    assert searched == {item.id for item in material.search_items}
