"""Adapters: merged and unmerged are the same function, and what cannot be done is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from negawatt.artifact import Artifact
from negawatt.compress import Recipe, compress, parse
from negawatt.errors import UsageError
from negawatt.testing.small_models import TEXT, small_model
from negawatt.testing.small_workload import small_workload

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

SMALL = "steps=30,batch=2,rank=4,rate=0.01,precision=float32"
LOADING = """
import json, sys, torch, transformers, peft
for folder, *adapters in json.loads(sys.argv[1]):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    for adapter in adapters:
        model = peft.PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.arange(40)[None]).logits
    print(*logits.flatten()[::97].tolist())
"""


def made(model: Path, passes: str, output: Path) -> dict[str, Any]:
    text = output.with_name("text.txt")
    text.write_text(TEXT * 4, "utf-8")
    techniques = tuple(map(parse, passes.split()))
    recipe = Recipe(str(model), techniques, str(text), windows=4, heldout=2, length=64, threads=1)
    return compress(recipe, output, keep_worse=True)


def said(*models: tuple[Path, ...]) -> list[Any]:
    """Some logits of models, with an adapter of PEFT where one is named, in a process that lacks Negawatt."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", LOADING, json.dumps([[str(p) for p in each] for each in models])],
        capture_output=True, text=True, env=environment, check=True,
    )  # fmt: skip
    return [torch.tensor([float(x) for x in line.split()]) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("kind", ["lora", "adalora", "dora"])
def test_merged_and_unmerged_are_the_same_function(kind: str, tmp_path: Path) -> None:
    model = small_model(tmp_path / "model", "llama")
    document = made(model, f"adapter:kind={kind},{SMALL}", tmp_path / "merged")
    made(model, f"adapter:kind={kind},merge=false,{SMALL}", tmp_path / "beside")
    outcome = document["passes"][0]["outcome"]
    assert outcome["loss_last"] < 0.95 * outcome["loss_first"]
    unmerged = (tmp_path / "beside", tmp_path / "beside" / "adapter")
    before, merged, beside = said((model,), (tmp_path / "merged",), unmerged)
    assert (before - merged).abs().max() > 0.05
    assert (beside - merged).abs().max() < 2e-3
    if kind == "adalora":
        assert 0 < sum(outcome["ranks"].values()) <= 4 * len(outcome["ranks"])
        assert len(set(outcome["ranks"].values())) > 1


def test_a_classifier_is_trained_on_labels(tmp_path: Path) -> None:
    texts, model = small_workload(tmp_path / "texts"), small_model(tmp_path / "model", "bert")
    for merge in ("true", "false"):
        technique = parse(f"adapter:kind=dora,merge={merge},steps=30,batch=8,rank=4,rate=0.01")
        recipe = Recipe(str(model), (technique,), str(texts), windows=4, heldout=2, length=64, threads=1)
        step = compress(recipe, tmp_path / merge)["passes"][0]
        assert step["quality"]["metric"] == "accuracy"
        assert (step["quality"]["after"] > 0.9) == (merge == "true")
    merged, base = (Artifact.open(tmp_path / m).checkpoint() for m in ("true", "false"))
    maker, tokens = transformers.AutoModelForSequenceClassification, torch.arange(5, 25)[None]
    adapted = peft.PeftModel.from_pretrained(maker.from_pretrained(base), base / "adapter")
    with torch.no_grad():
        ours, theirs = (m.eval()(input_ids=tokens).logits for m in (maker.from_pretrained(merged), adapted))
    assert (ours - theirs).abs().max() < 2e-3


def test_a_prefix_is_kept_beside_the_model(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model", "llama")
    document = made(model, f"adapter:kind=prefix,merge=false,{SMALL}", tmp_path / "out")
    assert "unmerged in adapter/" in document["passes"][0]["notes"][0]
    assert "unmerged in adapter/" in Artifact.open(tmp_path / "out").notes
    out = tmp_path / "out"
    alone, adapted, before = said((out,), (out, out / "adapter"), (model,))
    assert torch.equal(alone, before)
    assert (alone - adapted).abs().max() > 0.01


def test_an_adapter_does_not_follow_other_weights(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model", "llama")
    made(model, f"adapter:merge=false,{SMALL} rtn:bits=8,group=32", tmp_path / "out")
    assert not (tmp_path / "out" / "adapter").exists()


@pytest.mark.parametrize(
    ("technique", "family", "sentence"),
    [
        ("adapter:kind=prefix", "llama", "a prefix is no change of weights and cannot be merged"),
        ("adapter:kind=prefix,merge=false", "bert", "a prefix is for decoders, and model is an encoder"),
        ("adapter", "bert", "adapter learns from labelled texts"),
    ],
)
def test_what_cannot_be_done(technique: str, family: str, sentence: str, tmp_path: Path) -> None:
    model = small_model(tmp_path / "model", family)
    with pytest.raises(UsageError, match=sentence):
        made(model, technique, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_a_kind_that_is_not_known() -> None:
    with pytest.raises(UsageError, match="kind must be one of lora, adalora, dora, prefix, not bottleneck"):
        parse("adapter:kind=bottleneck")
