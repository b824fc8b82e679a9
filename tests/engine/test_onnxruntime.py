"""The ONNX Runtime engine on small models of the families, against transformers in fp32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.artifact import Artifact
from negawatt.artifact.packed_file import PackedTensor, read_packed
from negawatt.compress import Recipe, compress, parse
from negawatt.engine import Engine, Settings, onnx_modules
from negawatt.engine.backend import Backend, Chunk, Logits
from negawatt.engine.decode import Decoder, Request
from negawatt.engine.onnx_cache import CacheInPlace, GrowingCache
from negawatt.engine.onnx_modules import Grid, rounded
from negawatt.engine.onnxruntime import OnnxRuntimeBackend, kernels
from negawatt.engine.transformers import TransformersBackend
from negawatt.errors import EngineError, UnsupportedSetting
from negawatt.testing.small_models import TEXT, small_model

for library in ("onnx", "onnxscript", "onnxruntime", "torch", "transformers"):
    pytest.importorskip(library)

RANDOM = np.random.default_rng(0)
PROMPTS = [RANDOM.integers(5, 300, n).tolist() for n in (7, 40, 1)]


def ready(kind: type[Backend], folder: Path, cache: Path, weight_format: str, batch: int) -> Backend:
    name = kind.name
    backend = kind(Settings(engine=name, weight_format=weight_format, threads=1, batch=batch))
    backend.load(kind.prepare(folder, weight_format, cache))
    return backend


def said(backend: Backend) -> list[Logits]:
    """Logits of a padded batch of prompts, of the token after, and of one more without the middle one."""
    found = backend.forward([Chunk(i, p, rows=len(p)) for i, p in enumerate(PROMPTS)])
    found = [rows.copy() for rows in found]
    found += [rows.copy() for rows in backend.forward([Chunk(i, [9 + i]) for i in range(3)])]
    backend.release(1)
    found += [rows.copy() for rows in backend.forward([Chunk(0, [12]), Chunk(2, [13])])]
    for slot in (0, 2):
        backend.release(slot)
    return found


@pytest.mark.parametrize(
    ("family", "changes", "cache"),
    [("gemma3_text", {}, CacheInPlace), ("gpt2", {}, CacheInPlace), ("llama", {"head_dim": 4}, GrowingCache)],
)
def test_a_padded_batch_that_shrinks_gives_the_logits_of_transformers(
    family: str, changes: dict[str, int], cache: type[GrowingCache], tmp_path: Path
) -> None:
    """Gemma's layers see 16 tokens back here, and one prompt has 40; no operator has heads of 4."""
    folder = small_model(tmp_path / family, family, **changes)
    backend = ready(OnnxRuntimeBackend, folder, tmp_path, "native", 3)
    ours = said(backend)
    assert type(backend._cache) is cache
    theirs = said(ready(TransformersBackend, folder, tmp_path, "fp32", 3))
    assert [a.shape for a in ours] == [b.shape for b in theirs]
    assert max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True)) < 1e-4


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A small Gemma, which multiplies what it looks up by a number, in symmetric groups of 32."""
    place = tmp_path_factory.mktemp("packed")
    (place / "text.txt").write_text(TEXT * 2, "utf-8")
    small_model(place / "gemma", "gemma3_text")
    recipe = Recipe(
        str(place / "gemma"), (parse("rtn:bits=4,group=32"),), text=str(place / "text.txt"),
        windows=4, heldout=2, length=32,
    )  # fmt: skip
    compress(recipe, place / "small", keep_worse=True)
    return Artifact.open(place / "small")


def test_native_keeps_the_grid_of_packed_weights(packed: Artifact, tmp_path: Path) -> None:
    """All that differs from the dequantized weights is that activations are rounded to 8 bits."""
    backend = ready(OnnxRuntimeBackend, packed.path, tmp_path, "native", 3)
    theirs = said(ready(TransformersBackend, packed.path, tmp_path, "fp32", 3))
    alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(said(backend), theirs, strict=True)]
    assert min(alike) > 0.995
    folder = OnnxRuntimeBackend.prepare(packed.path, "native", tmp_path)
    n_matrices = sum(isinstance(t, PackedTensor) for t in read_packed(packed.path).values())
    ran = kernels(folder)
    assert ran["MatMulNBits"] == n_matrices  # the head is tied to the embedding, which is one of them
    assert ran["GatherBlockQuantized"] == 1
    assert sum(f.stat().st_size for f in folder.glob("*.data")) < 0.35 * 4 * packed.shape.n_params


def test_formats_of_few_bits_take_few_bits_and_stay_close(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model", "llama")
    theirs = said(ready(TransformersBackend, folder, tmp_path, "fp32", 3))
    n_params = Artifact.open(folder).shape.n_params
    for weight_format, likeness, most_bits in (("int4-g32-asym", 0.85, 6.5),):
        backend = ready(OnnxRuntimeBackend, folder, tmp_path, weight_format, 3)
        alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(said(backend), theirs, strict=True)]
        assert min(alike) > likeness
        made = OnnxRuntimeBackend.prepare(folder, weight_format, tmp_path)
        assert sum(f.stat().st_size for f in made.glob("*.data")) * 8 / n_params < most_bits


def test_speculation_and_long_answers_change_no_answer(tmp_path: Path) -> None:
    """The cache's buffers are made larger on the way, and shorter again after what was not accepted."""
    folder = small_model(tmp_path / "model", "llama")
    backend = ready(OnnxRuntimeBackend, folder, tmp_path, "native", 1)
    prompt = [*PROMPTS[0], *PROMPTS[0]]
    long = RANDOM.integers(5, 300, CacheInPlace.SPARE + 40).tolist()
    (whole,) = backend.forward([Chunk(0, long)])
    backend.release(0)
    for token in ([*long[:10]], *([t] for t in long[10:])):
        (last,) = backend.forward([Chunk(0, token)])
    backend.release(0)
    assert np.abs(last - whole).max() < 1e-4
    plain = Decoder(backend).generate([Request(prompt, 24)])[0].tokens
    backend.settings = backend.settings.replace(speculation="ngram")
    decoder = Decoder(backend)
    assert decoder.generate([Request(prompt, 24)])[0].tokens == plain
    assert len(decoder.steps) < 24, "nothing was ever accepted, so nothing was tried"
    with pytest.raises(UnsupportedSetting, match="batch 1 only"):
        OnnxRuntimeBackend(Settings(engine="onnxruntime", batch=2, speculation="ngram"))


def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    backend = OnnxRuntimeBackend(Settings(engine="onnxruntime"))
    with pytest.raises(EngineError, match="onnxruntime cannot load") as told:
        backend.load(tmp_path)
    assert "\n" not in str(told.value)


def test_groups_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model", "llama", intermediate_size=80)
    with pytest.raises(EngineError, match=r"groups of 64 do not divide the 80 inputs of .*down_proj"):
        OnnxRuntimeBackend.prepare(folder, "int4-g64-sym", tmp_path)
    assert not list(tmp_path.glob("*int4*"))


@given(st.sampled_from([4, 8]), st.booleans(), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e-3, 10.0]))
def test_rounding_errs_by_half_a_step_at_most(bits: int, symmetric: bool, seed: int, size: float) -> None:
    """But for the one side of a symmetric grid that ends a step early."""
    weight = (np.random.default_rng(seed).normal(size=(3, 64)) * size).astype(np.float32)
    found = rounded(weight, Grid(bits, 32, symmetric), name="w")
    zeros = np.full_like(found.scales, 1 << (bits - 1)) if found.zeros is None else found.zeros
    scales = np.repeat(found.scales, 32, axis=1)
    back = (found.codes.astype(np.float32) - np.repeat(zeros, 32, axis=1)) * scales
    half = np.abs(scales) * (1.001 if symmetric else 0.501)
    # The zero is rounded too, so the ends of an asymmetric grid may lie half a step inside the range.
    assert (np.abs(back - weight) <= half + (0 if symmetric else half) + 1e-9).all()


def test_the_largest_weight_of_a_symmetric_block_is_met_exactly() -> None:
    weight = np.linspace(-0.3, 0.8, 32, dtype=np.float32)[None]
    found = rounded(weight, Grid(4, 32), name="w")
    assert (float(found.codes[0, -1]) - 8) * found.scales[0, 0] == pytest.approx(0.8)
    assert onnx_modules.ACCURACY == 4


def test_an_encoder_with_rotary_positions_takes_texts_of_unlike_length(tmp_path: Path) -> None:
    """ModernBERT computes the angles for one row, and the operator wants them for each."""
    folder = small_model(tmp_path / "model", "modernbert")
    texts = [PROMPTS[0], PROMPTS[1], [9, 3]]
    found = []
    for name in ("onnxruntime", "transformers"):
        settings = Settings(engine=name, weight_format="fp32", threads=1, batch=3, pooling="mean")
        with Engine(Artifact.open(folder), settings, cache=tmp_path / name) as engine:
            found.append(engine.embed(texts).vectors)
    assert np.abs(found[0] - found[1]).max() < 1e-5
