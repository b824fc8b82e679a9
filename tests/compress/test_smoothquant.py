"""SmoothQuant: outliers move into the weights, inputs are rounded, and engines really do so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from negawatt.artifact import Artifact
from negawatt.artifact.packed_file import PackedTensor, read_packed
from negawatt.catalog.manifest import PACKED_FILE
from negawatt.compress import Recipe, Source, compress, parse
from negawatt.compress.judgement import judge
from negawatt.compress.network import Network
from negawatt.engine import Engine, Settings
from negawatt.engine.openvino_integers import properties, sums_are_exact
from negawatt.engine.rounded_inputs import rounded, rounding
from negawatt.errors import ArtifactError, IntegrityError
from negawatt.testing import PassContract
from negawatt.testing.small_models import TEXT, small_model

TOKENS = [5, 6, 7, 8, 9, 10]


class TestSmoothQuant(PassContract):
    @pytest.fixture
    def technique(self) -> str:
        return "smoothquant:tolerance=1"


def spiked(folder: Path) -> Path:
    """A small model, one channel of whose norms is far larger than the others, as trained models have it."""
    from safetensors.torch import load_file, save_file

    model = small_model(folder)
    weights = load_file(model / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith("layernorm.weight"):
            weight[5] = 60.0
        elif name.split(".")[-2] in ("q_proj", "k_proj", "v_proj", "up_proj", "gate_proj"):
            weight[:, 5] /= 60.0
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A model with an outlying channel, its smoothed copy, and its copy without smoothing."""
    folder = tmp_path_factory.mktemp("smooth")
    (folder / "text.txt").write_text(TEXT * 4, "utf-8")
    model = spiked(folder / "model")
    for name, technique in (
        ("smooth", "smoothquant:tolerance=1"),
        ("plain", "smoothquant:alpha=0,tolerance=1"),
    ):
        recipe = Recipe(str(model), (parse(technique),), str(folder / "text.txt"), windows=4, heldout=2,
                        length=64, threads=1)  # fmt: skip
        compress(recipe, folder / name, keep_worse=True)  # random weights are no better for being exact
    return model, folder / "smooth", folder / "plain"


def test_smoothing_beats_its_plain_fallback_where_a_channel_outlies(made: tuple[Path, Path, Path]) -> None:
    model, smooth, plain = made
    windows = torch.arange(128).reshape(2, 64) * 3
    losses = [judge(Source.of(Artifact.open(each)), windows) for each in (model, smooth, plain)]
    gone = [(each.scores - losses[0].scores).abs().mean() for each in losses[1:]]
    assert gone[0] < 0.5 * gone[1]
    assert str(parse("smoothquant:tolerance=1").fallback()) == "smoothquant:alpha=0.0,tolerance=1.0"
    assert parse("smoothquant:alpha=0").fallback() is None


def test_inputs_become_multiples_of_the_scale_wherever_they_run(made: tuple[Path, Path, Path]) -> None:
    source = Source.of(Artifact.open(made[1]))
    network, found = Network(source), rounding(source.tensors)
    assert len(found) == 21
    seen = []
    linear = network.linears(1)[-1]
    linear.module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with network.loaded(1):
        network.forward(1, network.embedded(torch.tensor([TOKENS])))
    multiples = seen[0] / found[linear.name].input_scale
    assert torch.allclose(multiples, multiples.round(), atol=1e-3)
    assert multiples.abs().max() <= 128
    assert rounded(torch.tensor([10.0, -10.0]), 0.01).tolist() == pytest.approx([1.27, -1.28])


def test_a_gradient_passes_straight_through_the_rounding() -> None:
    values = torch.tensor([0.4, 1.6], requires_grad=True)
    found = rounded(values, 1.0)
    found.sum().backward()
    assert found.tolist() == pytest.approx([0.0, 2.0])
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 1.0]


def test_layers_whose_inputs_cannot_be_rounded_keep_them(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT * 4, "utf-8")
    recipe = Recipe(str(small_model(tmp_path / "m")), (parse("smoothquant:tolerance=0"),),
                    str(tmp_path / "text.txt"), windows=4, heldout=2, length=64)  # fmt: skip
    document = compress(recipe, tmp_path / "out", keep_worse=True)
    assert len(document["passes"][0]["outcome"]["inputs_kept"]) == 21
    assert document["passes"][0]["notes"][0].startswith(
        "0 of 21 layers round their inputs to 8 bits; OpenVINO"
    )
    tensors = read_packed(tmp_path / "out").values()
    assert all(t.input_scale is None for t in tensors if isinstance(t, PackedTensor))


def in_integers(engine: Engine) -> int:
    """How many matrices an engine multiplies in 8-bit integers."""
    return sum(count for kernel, count in engine.info["kernels"].items() if kernel.endswith("_i8"))


def test_openvino_multiplies_integers_and_transformers_gives_the_same(made: tuple[Path, Path, Path]) -> None:
    pytest.importorskip("openvino_genai")
    artifact = Artifact.open(made[1])
    ours = Settings(engine="openvino", threads=1, max_context=64)
    with Engine(artifact, ours) as openvino, Engine(artifact, Settings(max_context=64)) as reference:
        assert in_integers(openvino) == (21 if sums_are_exact() else 0)
        assert reference.info["rounded"] == 21
        difference = openvino.distributions(TOKENS) - reference.distributions(TOKENS)
    with Engine(artifact, ours.replace(weight_format="int8")) as weights_alone:
        assert in_integers(weights_alone) == 0
    assert np.abs(difference).mean() < 0.1


def test_large_products_are_not_cut_on_any_processor(tmp_path: Path) -> None:
    """Inputs and weights at the ends of their 8 bits, all of one sign, as SmoothQuant's scales make them."""
    openvino, opset = pytest.importorskip("openvino"), pytest.importorskip("openvino.opset13")
    n = 64
    x = opset.parameter([1, n], np.float32)
    rounded = opset.fake_quantize(x, *map(np.float32, (-128, 127, -128, 127)), 256)
    codes = opset.convert(opset.constant(np.full((n, n), 127, np.int8)), np.float32)
    weights = opset.multiply(codes, opset.constant(np.ones((n, 1), np.float32)))
    model = openvino.Model([opset.matmul(rounded, weights, False, True)], [x])
    compiled = openvino.Core().compile_model(model, "CPU", properties())
    for value in (127, -128):
        assert compiled(np.full((1, n), value, np.float32))[0][0, 0] == value * 127 * n


def test_a_scale_that_is_none_is_refused(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    content = (made[1] / PACKED_FILE).read_bytes()
    where = content.index(b'\\"input_scale\\": ') + len(b'\\"input_scale\\": ')
    damaged = content[:where] + b"-0." + content[where + 3 :]
    (tmp_path / PACKED_FILE).write_bytes(damaged)
    with pytest.raises((IntegrityError, ArtifactError), match="do not fit each other"):
        read_packed(tmp_path)
