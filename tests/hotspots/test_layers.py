"""Layers and operators of real models: counts worked out by hand, and a whole that stays whole."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time

import pytest

from negawatt.artifact import Artifact
from negawatt.hotspots import Hotspots, by_layer, by_role, of_model

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def assert_whole(found: Hotspots) -> None:
    parts_j = math.fsum(spot.self_energy.value_j or 0.0 for spot in found.whole.walk())
    assert parts_j == pytest.approx(found.measurement.energy.value_j, rel=1e-9)


def by_name(found: Hotspots) -> dict[str, object]:
    return {spot.name: spot for spot in found.flat()}


class Burning(torch.nn.Module):  # type: ignore[misc]
    """A layer that uses known CPU time, in Python."""

    def __init__(self, cpu_s: float) -> None:
        super().__init__()
        self.cpu_s = cpu_s

    def forward(self, x: object) -> object:
        end = time.thread_time() + self.cpu_s
        while time.thread_time() < end:
            pass
        return x


def test_modules_are_charged_what_they_used() -> None:
    model = torch.nn.Sequential(Burning(0.05), torch.nn.Sequential(Burning(0.15)))
    with by_layer(model) as looked:
        with looked.stage("once"):
            model(torch.ones(1))
        model(torch.ones(1))
    found = looked.hotspots
    burnt = [spot for spot in found.whole.walk() if spot.place == "Burning"]
    assert sorted(spot.cpu_s for spot in burnt) == pytest.approx([0.05, 0.05, 0.15, 0.15], abs=0.02)
    assert next(s for s in found.whole.inside if s.name == "once").cpu_s == pytest.approx(0.2, abs=0.03)
    assert_whole(found)
    assert not model._forward_hooks


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "enable_grad"])
def test_flops_and_bytes_are_those_worked_out_by_hand(mode: str) -> None:
    model = torch.nn.Linear(64, 32, bias=False)
    with by_layer(model) as looked, getattr(torch, mode)():
        model(torch.rand(8, 64))
    spots = by_name(looked.hotspots)
    product = spots["aten.mm"]
    assert product.flops == 2 * 8 * 64 * 32
    assert product.moved_bytes == 4 * (8 * 64 + 64 * 32 + 8 * 32)
    assert product.count == 1
    assert spots["aten.t"].moved_bytes == 0, "a view moves nothing"
    assert spots["Linear"].flops == product.flops
    assert_whole(looked.hotspots)


def test_an_embedding_reads_the_rows_it_needs() -> None:
    with by_layer(torch.nn.Embedding(1000, 16)) as looked:
        torch.nn.functional.embedding(torch.tensor([1, 2, 3]), torch.rand(1000, 16))
    assert by_name(looked.hotspots)["aten.embedding"].moved_bytes == 2 * 3 * 16 * 4 + 3 * 8


def test_a_backward_pass_is_a_part_of_its_own_and_training_still_trains() -> None:
    torch.manual_seed(0)
    model, reference = torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)
    reference.load_state_dict(model.state_dict())
    x = torch.rand(3, 4)
    reference(x).sum().backward()
    with by_layer(model) as looked:
        model(x).sum().backward()
    assert torch.equal(model.weight.grad, reference.weight.grad)
    backward = next(spot for spot in looked.hotspots.whole.inside if spot.name == "backward")
    assert backward.flops
    assert {spot.kind for spot in backward.inside} == {"operator"}
    assert_whole(looked.hotspots)


def test_a_model_that_fails_raises_what_it_would_without_hooks() -> None:
    model = torch.nn.Linear(4, 2)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), by_layer(model):
        model(torch.rand(3, 5))
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_a_real_model_by_stage_role_and_operator(model: Artifact) -> None:
    n_new, passes = 3, 1
    found = of_model(model, prompt="Water boils at", n_new=n_new, passes=passes, threads=1)
    assert_whole(found)
    roles = {(r.stage, r.name): r for r in by_role(found.whole)}
    for stage in ("prefill", "decode"):
        for name in ("embedding", "attention", "MLP", "norm", "head"):
            assert roles[stage, name].energy.value_j > 0
    whole_j = math.fsum(r.energy.value_j for r in roles.values())
    assert whole_j == pytest.approx(found.measurement.energy.value_j, rel=1e-9)
    shape = model.shape
    layers, hidden, ffn, vocab = shape.n_layers, shape.hidden, shape.ffn, shape.vocab
    steps = n_new - 1
    assert roles["decode", "MLP"].flops == steps * 2 * 3 * hidden * ffn * layers
    assert roles["decode", "head"].flops == steps * 2 * hidden * vocab
    # A decode step reads every weight once: 4 bytes each, and a little for what passes between.
    weights = 4 * 3 * hidden * ffn * layers * steps
    assert weights < roles["decode", "MLP"].moved_bytes < 1.05 * weights
    assert any("hooks" in note for note in found.notes)
    assert any(note.startswith("decode: ~") and "a token" in note for note in found.notes)


def test_the_command_looks_into_a_model(model: Artifact) -> None:
    arguments = [
        "--model",
        "smollm2-135m-instruct",
        "--new",
        "2",
        "--passes",
        "1",
        "--threads",
        "1",
        "--json",
    ]
    code = "from negawatt.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "hotspots", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert {role["name"] for role in document["roles"]} >= {"embedding", "attention", "MLP", "norm", "head"}
    assert document["samples"] is None
    assert document["whole"]["energy"]["value_j"] == document["energy"]["value_j"]


def test_a_model_that_is_not_there_gets_a_sentence() -> None:
    code = "from negawatt.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "hotspots", "--model", "no-such"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("negawatt: ")
