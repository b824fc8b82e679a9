"""Sparsity: exactly the share asked for, no worse than a simpler way, and honest about speed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from negawatt.artifact import Artifact
from negawatt.compress import Recipe, Source, compress, parse
from negawatt.compress.inputs import groups, inputs
from negawatt.compress.moments import moment
from negawatt.compress.network import Network
from negawatt.compress.sparsegpt import compensated
from negawatt.compress.sparsity import weakest
from negawatt.errors import UsageError
from negawatt.testing import PassContract
from negawatt.testing.small_models import FAMILIES, TEXT, small_model


class TestMagnitude(PassContract):
    @pytest.fixture
    def technique(self) -> str:
        return "magnitude:ratio=0.3"


class TestWanda(PassContract):
    @pytest.fixture
    def technique(self) -> str:
        return "wanda"


class TestSparseGpt(PassContract):
    @pytest.fixture
    def technique(self) -> str:
        return "sparsegpt:pattern=2:4"


def test_two_of_four_knows_its_own_ratio(tmp_path: Path) -> None:
    source = Source.of(Artifact.open(small_model(tmp_path)))
    with pytest.raises(UsageError, match=r"ratio must be 0\.5, not 0\.3"):
        parse("wanda:pattern=2:4,ratio=0.3").check(source)


def test_two_of_four_needs_inputs_that_four_divides(tmp_path: Path) -> None:
    source = Source.of(Artifact.open(small_model(tmp_path, intermediate_size=126)))
    with pytest.raises(UsageError, match=r"4 divides, and mlp\.down_proj .* has 126; use pattern=free"):
        parse("sparsegpt:pattern=2:4").check(source)


def test_the_weakest_of_every_row_go_and_no_more_among_equals() -> None:
    assert weakest(torch.ones(3, 10), 0.5, "free").sum(dim=1).tolist() == [5, 5, 5]
    score = torch.tensor([[4.0, 1.0, 3.0, 2.0, 9.0, 9.0, 9.0, 8.0]])
    assert weakest(score, 0.5, "2:4").tolist() == [[False, True, False, True, True, False, False, True]]
    assert weakest(score, 0.25, "free").nonzero()[:, 1].tolist() == [1, 3]


@pytest.mark.parametrize(
    ("technique", "pattern"), [("magnitude", "free"), ("wanda", "2:4"), ("sparsegpt", "free")]
)
def test_the_result_holds_the_zeros_it_says(technique: str, pattern: str, tmp_path: Path) -> None:
    """GPT-2 stores inputs × outputs: the pattern must lie along the inputs all the same."""
    (tmp_path / "text.txt").write_text(TEXT * 4, "utf-8")
    model = small_model(tmp_path / "model", "gpt2")
    recipe = Recipe(str(model), (parse(f"{technique}:pattern={pattern}"),), str(tmp_path / "text.txt"),
                    windows=4, heldout=2, length=64)  # fmt: skip
    document = compress(recipe, tmp_path / "out", keep_worse=True)
    (note,) = document["passes"][0]["notes"]
    assert note.startswith("50.0% of the weights")
    assert "nor faster" in note
    result = Artifact.open(tmp_path / "out")
    assert note in result.notes
    before, after = Source.of(Artifact.open(model)), Source.of(result)
    changed = {n for n in before.tensors if not torch.equal(before.tensor(n), after.tensor(n))}
    network = Network(after)
    linears = {linear.name for block in range(3) for linear in network.linears(block)}
    assert changed == linears
    for name in linears:
        zero = after.tensor(name).T == 0
        assert float(zero.float().mean()) == pytest.approx(0.5, abs=0.01)
        if pattern == "2:4":
            assert (zero.reshape(-1, 4).sum(dim=1) == 2).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_get_what_the_pruned_ones_before_them_give(family: str, tmp_path: Path) -> None:
    network = Network(Source.of(Artifact.open(small_model(tmp_path, family))))
    hidden = network.embedded(torch.arange(128).reshape(2, 64))
    with network.loaded(0):
        order = groups(network, 0, hidden, network.linears(0))
        assert {linear.path for group in order for linear in group} == {
            linear.path for linear in network.linears(0)
        }
        first, *_, last = order
        before = torch.cat(list(inputs(network, 0, hidden, last[0])))
        assert before.shape == (128, last[0].inputs)
        for linear in first:
            linear.put(linear.weight * 0.5)
        after = torch.cat(list(inputs(network, 0, hidden, last[0])))
        assert not torch.allclose(before, after)


@pytest.fixture
def layer() -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and inputs that depend on each other and differ in size, as those of real layers do."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(96, 96, generator=generator)
    size = torch.linspace(0.2, 3.0, 96)[torch.randperm(96, generator=generator)]
    x = torch.randn(2000, 96, generator=generator) @ (mix @ mix.T / 96) * size
    return torch.randn(32, 96, generator=generator), x


def _error(weight: torch.Tensor, pruned: torch.Tensor, x: torch.Tensor) -> float:
    return float((x @ (weight - pruned).T).square().mean())


@pytest.mark.parametrize("pattern", ["free", "2:4"])
def test_compensation_beats_choice_and_choice_beats_size(
    pattern: str, layer: tuple[torch.Tensor, torch.Tensor]
) -> None:
    weight, x = layer
    second = moment(x.split(700))
    assert torch.allclose(second, x.T @ x / len(x), atol=1e-4)
    by_size = weight.masked_fill(weakest(weight.abs(), 0.5, pattern), 0.0)
    norm = second.diagonal().sqrt()
    by_choice = weight.masked_fill(weakest(weight.abs() * norm, 0.5, pattern), 0.0)
    made_up = compensated(weight, second, damping=0.1, ratio=0.5, pattern=pattern)
    assert _error(weight, made_up, x) < 0.8 * _error(weight, by_choice, x)
    assert _error(weight, by_choice, x) < _error(weight, by_size, x)


def test_with_all_trust_gone_compensation_is_wanda(layer: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, x = layer
    second = moment([x])
    goes = weakest(weight.abs() * second.diagonal().sqrt(), 0.5, "free")
    made_up = compensated(weight, second, damping=1e6, ratio=0.5, pattern="free")
    assert torch.equal(made_up == 0, goes)
    assert torch.allclose(made_up, weight.masked_fill(goes, 0.0), atol=1e-4)


def test_inputs_that_never_came_do_no_harm() -> None:
    second = torch.zeros(8, 8)
    second[:4, :4] = torch.eye(4)
    found = compensated(torch.ones(2, 8), second, damping=0.1, ratio=0.5, pattern="free")
    assert torch.isfinite(found).all()
    assert found[:, :4].eq(1).all()
    assert found[:, 4:].eq(0).all()
