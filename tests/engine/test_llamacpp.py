"""llama.cpp: weight formats, speculation, quantized KV cache, and variants that die."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from negawatt.artifact import Artifact
from negawatt.engine import Engine, Request, Settings, llamacpp
from negawatt.engine import llamacpp_library as library
from negawatt.engine.backend import Chunk, Logits
from negawatt.engine.engine import FRESH_WORKER_AFTER_CPU_S
from negawatt.engine.llamacpp import LlamaCppBackend
from negawatt.errors import ArtifactError, MissingDependency, UnsupportedSetting

TEXT = "The days: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday, Monday, Tuesday,"


def answer(model: Artifact, settings: Settings, n: int = 24) -> tuple[list[int], int]:
    """Greedy tokens, and how many engine calls the decoding took."""
    with Engine(model, settings.replace(engine="llamacpp", max_context=256, threads=1)) as engine:
        generation = engine.generate([Request(model.tokenizer.encode(TEXT), n)])
        return generation.completions[0].tokens, sum(s.phase == "decode" for s in generation.steps)


def test_speculation_gives_the_same_text_in_fewer_calls(model: Artifact) -> None:
    plain, calls = answer(model, Settings())
    guessed, fewer = answer(model, Settings(speculation="ngram"))
    assert guessed == plain
    assert calls == 23
    assert fewer < 0.7 * calls


def test_quantized_weights_are_smaller_and_mostly_agree(model: Artifact, tmp_path: Path) -> None:
    sizes = {}
    plain, _ = answer(model, Settings(), 8)
    for name in ("q8_0", "q4_0"):
        with Engine(
            model, Settings(engine="llamacpp", weight_format=name, max_context=256, threads=1), cache=tmp_path
        ) as engine:
            sizes[name] = engine.model_path.stat().st_size
            made, loaded = engine.prepare_usage.cpu_s, engine.load_usage.cpu_s
            assert made > FRESH_WORKER_AFTER_CPU_S, "another worker runs it"
            tokens = engine.generate([Request(model.tokenizer.encode(TEXT), 8)]).completions[0].tokens
            assert len(tokens) == 8
            used = engine.spent_cpu_s
            assert used >= made + loaded + engine.last_usage.cpu_s
            if name == "q8_0":
                assert tokens == plain
        assert engine.spent_cpu_s >= used, "what its end takes is known once it has ended"
        with Engine(model, engine.settings, cache=tmp_path) as engine:
            assert engine.spent_cpu_s == engine.last_usage.total_cpu_s, "made by another, counted there"
    assert sizes["q4_0"] < 0.6 * sizes["q8_0"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["q4_0.gguf", "q8_0.gguf"]  # nothing half-made


def test_a_quantized_kv_cache_runs_and_agrees_at_first(model: Artifact) -> None:
    assert answer(model, Settings(kv_cache="q8_0"), 4)[0] == answer(model, Settings(), 4)[0]


def test_a_quantized_kv_cache_without_flash_attention_is_refused(model: Artifact) -> None:
    with pytest.raises(UnsupportedSetting, match="flash attention"):
        Engine(model, Settings(engine="llamacpp", kv_cache="q8_0", flash_attention=False))


def test_names_what_really_runs(model: Artifact) -> None:
    with Engine(model, Settings(engine="llamacpp", max_context=64)) as engine:
        folder = library.runtime_folder()
        assert engine.info["variant"] in library.variants(folder)
        assert "CPU" in str(engine.info["kernels"])


def test_more_tokens_than_one_step_takes_are_fed_in_parts(
    model: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = (model.tokenizer.encode(TEXT) * 4)[:90]
    chunks = [Chunk(0, tokens, rows=40), Chunk(1, tokens[:7])]

    def logits(step: int) -> list[Logits]:
        monkeypatch.setattr(llamacpp, "TOKENS_PER_STEP", step)
        backend = LlamaCppBackend(Settings(engine="llamacpp", batch=2, max_context=128, threads=1))
        backend.load(model.gguf())
        return [rows.copy() for rows in backend.forward(chunks)]

    for whole, parts in zip(logits(128), logits(32), strict=True):
        assert whole.shape == parts.shape
        assert np.mean(whole.argmax(axis=1) == parts.argmax(axis=1)) >= 0.9
        assert np.abs(whole - parts).mean() < 0.5  # kernels for other shapes round otherwise


def test_the_next_variant_is_taken_when_the_best_dies(
    model: Artifact, fresh_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial of the first variant meets a real SIGILL; the choice falls on one that survives."""
    folder = Path(__file__).parents[2] / ".negawatt"
    monkeypatch.setattr(library, "variants", lambda _: ["does-not-exist", *real])
    with monkeypatch.context() as here:
        here.delenv("NEGAWATT_HOME")
        here.setenv("NEGAWATT_HOME", str(folder))
        runtime = library.runtime_folder()
    real = [v.stem.removeprefix("libggml-cpu-") for v in runtime.glob("libggml-cpu-x64.so")]
    trials: list[str] = []

    def died(variant: str, path: Path) -> str | None:
        trials.append(variant)
        return "SIGILL" if variant == "does-not-exist" else None

    monkeypatch.setattr(library, "_trial_death", died)
    assert library.choose_variant(runtime, model.gguf()) == "x64"
    assert trials == ["does-not-exist", "x64"]
    assert library.choose_variant(runtime, model.gguf()) == "x64"  # remembered: no third trial
    assert len(trials) == 2


def test_a_variant_this_processor_cannot_run_fails_alone(model: Artifact) -> None:
    """A compute library for another processor is a failed trial with its reason, not our end."""
    folder = library.runtime_folder()
    here = set(library.variants(folder))
    foreign = sorted(p.stem.removeprefix("libggml-cpu-") for p in folder.glob("libggml-cpu-*.so"))
    foreign = [v for v in foreign if v not in here] or ["no-such-variant"]
    death = library._trial_death(foreign[0], model.gguf())
    assert death is not None
    assert "does not load" in death or death.startswith("SIG")


def test_a_missing_runtime_says_how_to_get_it(fresh_home: Path) -> None:
    with pytest.raises(MissingDependency, match="negawatt engines pull llamacpp"):
        library.runtime_folder()


def test_a_damaged_gguf_is_refused_in_a_sentence(model: Artifact, tmp_path: Path) -> None:
    damaged = tmp_path / "model.gguf"
    data = bytearray(model.gguf().read_bytes())
    data[4:8] = (99).to_bytes(4, "little")  # a format version that does not exist
    damaged.write_bytes(data)
    with pytest.raises(ArtifactError, match="version 99"):
        Artifact.open(damaged)
