"""Quantization-aware training keeps the contract, and ends on the grid that it was trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from negawatt.artifact import Artifact
from negawatt.artifact.packed_file import PackedTensor, read_packed
from negawatt.compress import Recipe, compress, parse
from negawatt.compress.grid import Grid
from negawatt.compress.network import Linear
from negawatt.compress.qat import _rounding
from negawatt.errors import UsageError
from negawatt.testing import PassContract
from negawatt.testing.small_models import TEXT, small_model

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")


class TestQat(PassContract):
    families = ("llama", "qwen2", "gemma3_text", "gpt2")

    @pytest.fixture
    def technique(self) -> str:
        return "qat:bits=3,group=32,steps=20,batch=2,precision=float32"


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("transposed", [False, True])
def test_torchao_rounds_to_the_very_grid_that_is_stored(bits: int, transposed: bool) -> None:
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(bits))
    grid = Grid(bits, 32, symmetric=True)
    scale, offset = grid.scaled(weight, clip=True)
    assert (scale < 0).any()  # the grid's own trick: the larger end gets the additional code
    module = torch.nn.Linear(64, 24, bias=False)
    module.weight = torch.nn.Parameter(weight.T.contiguous() if transposed else weight)
    learnt = _rounding(Linear("p", "n", module, transposed, 64, 24), scale, bits, 32)
    seen = module.weight.T if transposed else module.weight
    stored = grid.values(grid.rounded(weight, scale, offset), scale, offset)
    assert (seen - stored).abs().max() < 1e-6
    (seen * torch.arange(64)).sum().backward()
    assert learnt.grad is not None
    assert (learnt.grad != 0).float().mean() > 0.5


def test_it_beats_plain_rounding_at_the_same_size(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 6, "utf-8")
    model = small_model(tmp_path / "model", "llama")
    technique = parse("qat:bits=2,group=32,steps=60,batch=2,rate=0.003,precision=float32")
    recipe = Recipe(str(model), (technique,), str(text), windows=6, heldout=3, length=64, threads=1)
    step = compress(recipe, tmp_path / "out")["passes"][0]  # raises where it does not beat it
    assert step["fallback"]["pass"] == "rtn:bits=2"
    assert step["quality"]["after"] < step["fallback"]["value"]
    tensors = read_packed(Artifact.open(tmp_path / "out").path)
    name = "model.layers.0.mlp.down_proj.weight"
    packed = tensors[name]
    assert isinstance(packed, PackedTensor)
    assert packed.bits == 2
    assert len(set(packed.unpacked().flatten().tolist())) == 4


def test_what_cannot_be_trained(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 4, "utf-8")
    for family, technique, sentence in (
        ("bert", "qat", "is an encoder"),
        ("llama", "qat:group=256", "does not divide"),
    ):
        model = small_model(tmp_path / family, family)
        recipe = Recipe(str(model), (parse(technique),), str(text), windows=4, heldout=2, length=64)
        with pytest.raises(UsageError, match=sentence):
            compress(recipe, tmp_path / "out")
