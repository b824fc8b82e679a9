"""Models of transformers on a second device: torch's lazy one, which computes whole graphs.

It stands in for a GPU: tensors on it are no tensors of the processor, and mixing the two is an error, so that
whatever is not moved where it belongs shows.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from negawatt.artifact import Artifact
from negawatt.engine import Settings, backends
from negawatt.engine.backend import Chunk, Logits
from negawatt.engine.torch_placement import place
from negawatt.engine.transformers import TransformersBackend, causal_lm
from negawatt.errors import EngineError, MissingDependency
from negawatt.testing import PlacementContract
from negawatt.testing.small_models import small_model

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

PROMPTS = ([5, 9, 13, 21, 34], [8, 3])
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def second() -> Iterator[str]:
    """The name of the second device, which the engine is let use."""
    try:
        importlib.import_module("torch._lazy.ts_backend").init()
    except (ImportError, AttributeError, RuntimeError) as exc:
        pytest.skip(f"this build of torch has no lazy device: {exc}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransformersBackend, "devices", ("cpu", "lazy"))
        # Its tensors cannot be made in inference mode, which differs from no_grad in bookkeeping alone.
        patch.setattr(torch, "inference_mode", torch.no_grad)
        yield "lazy"


def steps(checkpoint: Path, settings: Settings) -> tuple[list[Logits], dict[str, object]]:
    """Logits of two prompts and of three tokens after each, and what the engine tells."""
    backend = TransformersBackend(settings)
    backend.load(checkpoint)
    said = backend.forward([Chunk(n, tokens, 2) for n, tokens in enumerate(PROMPTS)])
    for token in (7, 11):
        said += backend.forward([Chunk(0, [token]), Chunk(1, [token + 1])])
    backend.release(0)
    said += backend.forward([Chunk(1, [40])])
    return said, backend.info()


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_every_placement_says_what_the_processor_says(second: str, family: str, tmp_path: Path) -> None:
    checkpoint = small_model(tmp_path / family, family, num_hidden_layers=4)
    settings = Settings(weight_format="fp32", batch=2, threads=1, max_context=64)
    wanted, told = steps(checkpoint, settings)
    assert "layers" not in told
    for number in (0, 3, None):
        found, told = steps(checkpoint, settings.replace(device=second, gpu_layers=number))
        for ours, theirs in zip(found, wanted, strict=True):
            assert np.abs(ours - theirs).max() < TOLERANCE, (family, number)
        there = 4 if number is None else number
        assert told["layers"] == {name: n for name, n in (("cpu", 4 - there), ("lazy:0", there)) if n}
        assert told["head"] == ("lazy:0" if there else "cpu")


def test_the_last_layers_and_the_head_go_there_and_the_embedding_stays(second: str, tmp_path: Path) -> None:
    model = causal_lm(small_model(tmp_path / "tied", num_hidden_layers=4), "fp32")
    before = model.get_input_embeddings().weight.detach().clone()
    place(model, Settings(device=second, gpu_layers=1))
    on = {name: each.device.type for name, each in model.named_parameters()}
    assert {kind for name, kind in on.items() if ".layers.3." in name} == {"lazy"}
    assert {kind for name, kind in on.items() if any(f".layers.{n}." in name for n in range(3))} == {"cpu"}
    assert (on["model.embed_tokens.weight"], on["model.norm.weight"]) == ("cpu", "lazy")
    assert on["lm_head.weight"] == "lazy"
    assert torch.equal(model.lm_head.weight.cpu(), before), "its own copy of what it was tied to"
    assert not any(each.device.type == "meta" for each in model.parameters()), "nothing is streamed"


def test_other_names_for_the_parts_of_a_model(second: str, tmp_path: Path) -> None:
    """Where they lie; the lazy device lacks an operation of this family's cache, so it does not run."""
    model = causal_lm(small_model(tmp_path / "gpt2", "gpt2"), "fp32")
    place(model, Settings(device=second, gpu_layers=2))
    on = {name: each.device.type for name, each in model.named_parameters()}
    there = {name.removeprefix("transformer.").split(".")[0] for name, kind in on.items() if kind == "lazy"}
    assert there == {"h", "ln_f", "lm_head"}
    assert {
        on["transformer.wte.weight"],
        on["transformer.wpe.weight"],
        on["transformer.h.0.ln_1.weight"],
    } == {"cpu"}


def test_more_layers_than_there_are_are_refused(second: str, tmp_path: Path) -> None:
    model = causal_lm(small_model(tmp_path / "m", num_hidden_layers=4), "fp32")
    with pytest.raises(EngineError, match="has 4 layers, of which 5"):
        place(model, Settings(device=second, gpu_layers=5))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TransformersBackend, "devices", ("cpu", "cuda"))  # as it is elsewhere
    backend = TransformersBackend(Settings(device="cuda", gpu_layers=2, weight_format="fp32", max_context=64))
    with pytest.raises(EngineError, match=r"processors only|finds no cuda device"):
        backend.load(small_model(tmp_path / "m"))
    (row,) = (r for r in backends.devices() if r["engine"] == "transformers")
    assert (row["status"], row["device"]) == ("absent", "cuda")


def test_part_of_a_model_needs_accelerate(
    second: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = causal_lm(small_model(tmp_path / "m", num_hidden_layers=4), "fp32")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingDependency, match=r"negawatt\[placement\]"):
        place(model, Settings(device=second, gpu_layers=2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")
class TestCuda(PlacementContract):
    @pytest.fixture(scope="class")
    def placed(self) -> Settings:
        return Settings(engine="transformers", device="cuda", weight_format="fp32")

    @pytest.fixture(scope="class")
    def layered(self, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
        return Artifact.open(small_model(tmp_path_factory.mktemp("model"), num_hidden_layers=4))
