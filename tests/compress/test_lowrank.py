"""Low rank: the budget is kept, the loss is what the spectrum says, and factors really run as factors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from negawatt.artifact import Artifact
from negawatt.artifact.factored_tensor import FactoredTensor
from negawatt.artifact.packed_file import read_packed
from negawatt.catalog.manifest import PACKED_FILE
from negawatt.compress import Recipe, Source, compress, parse
from negawatt.compress.factoring import Spectrum, factored, product, ranks, spectrum
from negawatt.compress.network import Linear, Network
from negawatt.engine import Engine, Request, Settings
from negawatt.errors import ArtifactError, IntegrityError, UsageError
from negawatt.testing import PassContract
from negawatt.testing.small_models import TEXT, small_model


class TestLowRank(PassContract):
    @pytest.fixture
    def technique(self) -> str:
        return "lowrank:ratio=0.3"


class TestSvd(PassContract):
    @pytest.fixture
    def technique(self) -> str:
        return "svd:ratio=0.3"


def test_a_ratio_out_of_reach_gets_a_sentence(tmp_path: Path) -> None:
    source = Source.of(Artifact.open(small_model(tmp_path)))
    with pytest.raises(UsageError, match=r"out of reach .* at rank 8 everywhere 0\.\d\d is saved"):
        parse("lowrank:ratio=0.95").check(source)


def _linear(weight: torch.Tensor) -> Linear:
    outputs, inputs = weight.shape
    module = torch.nn.Linear(inputs, outputs, bias=False)
    module.weight.data = weight
    return Linear("layer", "layer.weight", module, False, inputs, outputs)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_the_output_loses_what_the_spectrum_says_and_less_than_with_plain_svd(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    linear = _linear(torch.randn(shape, generator=generator))
    x = torch.randn(500, shape[1], generator=generator) @ torch.randn(shape[1], shape[1], generator=generator)
    second = x.T @ x / len(x)

    def lost(found: torch.Tensor) -> float:
        return float((x @ (linear.weight - found).T).square().sum() / len(x))

    energies = spectrum(linear, second).energies
    assert float(energies.sum()) == pytest.approx(
        float((x @ linear.weight.T).square().sum() / len(x)), rel=1e-3
    )
    found = product(factored(linear, 8, second, "F32"))
    assert torch.linalg.matrix_rank(found) == 8
    assert lost(found) == pytest.approx(float(energies[8:].sum()), rel=1e-3)
    left, values, right = torch.linalg.svd(linear.weight, full_matrices=False)
    plain = product(factored(linear, 8, None, "F32"))
    assert torch.allclose(plain, left[:, :8] * values[:8] @ right[:8], atol=1e-4)
    assert lost(found) < 0.9 * lost(plain)


def test_ranks_share_one_budget_and_go_where_they_are_needed() -> None:
    steep = torch.cat([torch.full((8,), 100.0), torch.full((56,), 0.01)])
    spectra = {"steep": Spectrum(steep, 64, 64), "flat": Spectrum(torch.ones(64), 64, 64)}
    found = ranks(spectra, 0.3)
    assert found == {"steep": 8}  # the flat one stays whole: 1024 + 4096 of 8192 weights
    for ratio in (0.4, 0.6, 0.7):
        found = ranks(spectra, ratio)
        assert sum(found[n] * 128 if n in found else 4096 for n in spectra) <= (1 - ratio) * 8192


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small model and its factored copy."""
    folder = tmp_path_factory.mktemp("factored")
    (folder / "text.txt").write_text(TEXT * 4, "utf-8")
    model = small_model(folder / "model", "llama")
    recipe = Recipe(str(model), (parse("lowrank:ratio=0.3"),), str(folder / "text.txt"), windows=4, heldout=2,
                    length=64)  # fmt: skip
    document = compress(recipe, folder / "out", keep_worse=True)
    (note,) = document["passes"][0]["notes"]
    assert "neither smaller nor faster" in note
    return model, folder / "out"


def test_the_budget_is_kept_in_bytes(made: tuple[Path, Path]) -> None:
    model, out = made
    network = Network(Source.of(Artifact.open(model)))
    names = [linear.name for block in range(3) for linear in network.linears(block)]
    before = sum(network.source.tensors[n].n_bytes for n in names)
    after = sum(read_packed(out)[n].n_bytes for n in names)
    assert 0.6 * before < after <= 0.7 * before
    assert Artifact.open(model).weight_bytes - Artifact.open(out).weight_bytes == before - after


def test_the_transformers_engine_runs_factors_and_exports_are_the_same_function(
    made: tuple[Path, Path],
) -> None:
    _, out = made
    n_factored = sum(isinstance(t, FactoredTensor) for t in read_packed(out).values())
    dense = Artifact.open(Artifact.open(out).checkpoint())
    with (
        Engine(Artifact.open(out), Settings(threads=1, max_context=64)) as ours,
        Engine(dense, Settings(threads=1, max_context=64)) as plain,
    ):
        assert ours.info["factored"] == n_factored > 0
        assert plain.info["factored"] == 0
        request = [Request([5, 6, 7, 8], 8)]
        assert ours.generate(request).completions[0].tokens == plain.generate(request).completions[0].tokens
        difference = ours.distributions([5, 6, 7, 8]) - plain.distributions([5, 6, 7, 8])
        assert abs(difference).max() < 1e-3


@pytest.mark.parametrize("weights", ["f16", "int8"])
def test_openvino_runs_factors_too(weights: str, made: tuple[Path, Path]) -> None:
    pytest.importorskip("openvino_genai")
    artifact = Artifact.open(made[1])
    settings = Settings(engine="openvino", weight_format=weights, threads=1, max_context=64)
    with Engine(artifact, settings) as ours, Engine(artifact, Settings(max_context=64)) as reference:
        difference = ours.distributions([5, 6, 7, 8]) - reference.distributions([5, 6, 7, 8])
        assert abs(difference).mean() < 0.1
        model = (ours.model_path / "openvino_model.xml").read_text()
    dense = sum(isinstance(t, FactoredTensor) for t in read_packed(made[1]).values())
    assert model.count('type="MatMul"') >= 2 * dense


def test_gguf_holds_the_product(made: tuple[Path, Path]) -> None:
    from negawatt.artifact.gguf_file import GgufFile

    artifact = Artifact.open(made[1])
    name = "model.layers.1.mlp.up_proj.weight"
    written = GgufFile.open(artifact.gguf()).dequantized("blk.1.ffn_up.weight")
    assert torch.allclose(torch.from_numpy(written), torch.from_numpy(read_packed(made[1])[name].float32()))


def test_factors_that_do_not_fit_are_refused(made: tuple[Path, Path], tmp_path: Path) -> None:
    content = (made[1] / PACKED_FILE).read_bytes()
    damaged = content.replace(b'\\"rank\\": 16', b'\\"rank\\": 17', 1)
    assert damaged != content
    (tmp_path / PACKED_FILE).write_bytes(damaged)
    with pytest.raises((IntegrityError, ArtifactError), match="rank 17"):
        read_packed(tmp_path)
