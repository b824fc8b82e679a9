"""The passes that train classifiers and students keep the contract of all passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from negawatt.compress import Recipe, compress, parse
from negawatt.testing import PassContract
from negawatt.testing.small_models import small_model
from negawatt.testing.small_workload import small_workload


class _OnLabels(PassContract):
    families = ("bert", "mpnet")

    @pytest.fixture
    def text(self, tmp_path: Path) -> Path:
        return small_workload(tmp_path / "texts")


class TestClassifier(_OnLabels):
    @pytest.fixture
    def technique(self) -> str:
        return "classifier:epochs=3,batch=8,rate=0.001"


class TestClassifierOnFrozenBlocks(_OnLabels):
    @pytest.fixture
    def technique(self) -> str:
        return "classifier:epochs=3,batch=8,rate=0.001,frozen=2"


class TestDistilledClassifier(_OnLabels):
    @pytest.fixture
    def technique(self, tmp_path: Path) -> str:
        texts = small_workload(tmp_path / "texts")
        model = small_model(tmp_path / "larger", "bert", seed=1, hidden_size=96)
        recipe = Recipe(str(model), (parse("classifier:epochs=1"),), str(texts), 4, 2, 64, threads=1)
        compress(recipe, tmp_path / "teacher")
        return f"distil:teacher={tmp_path / 'teacher'},epochs=2,batch=8,hidden=0.5,pieces=1"


class TestDistilledDecoder(PassContract):
    families = ("llama", "qwen2", "gemma3_text", "gpt2")

    @pytest.fixture
    def technique(self, tmp_path: Path) -> str:
        teacher = small_model(tmp_path / "teacher", "llama", seed=1, hidden_size=96, head_dim=24)
        return f"distil:teacher={teacher},epochs=20,top_k=8,hidden=0.5"


class TestHealWholly(PassContract):
    families = ("llama", "gpt2")

    @pytest.fixture
    def technique(self) -> str:
        return "heal:method=full,steps=20,batch=2,rate=0.0001,precision=float32"
