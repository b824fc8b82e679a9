"""Adapters keep the contract of all passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from negawatt.testing import PassContract
from negawatt.testing.small_workload import small_workload

pytest.importorskip("peft")

SMALL = "steps=20,batch=2,rank=2,precision=float32"


class _OnDecoders(PassContract):
    families = ("llama", "qwen2", "gemma3_text", "gpt2")


class TestLora(_OnDecoders):
    @pytest.fixture
    def technique(self) -> str:
        return f"adapter:{SMALL}"


class TestAdaLora(_OnDecoders):
    @pytest.fixture
    def technique(self) -> str:
        return f"adapter:kind=adalora,{SMALL}"


class TestDora(_OnDecoders):
    families = ("llama", "gpt2")

    @pytest.fixture
    def technique(self) -> str:
        return f"adapter:kind=dora,{SMALL}"


class TestPrefix(_OnDecoders):
    families = ("llama", "qwen2", "gpt2")

    @pytest.fixture
    def technique(self) -> str:
        return f"adapter:kind=prefix,merge=false,{SMALL}"


class TestUnmerged(_OnDecoders):
    families = ("llama", "gpt2")

    @pytest.fixture
    def technique(self) -> str:
        return f"adapter:merge=false,{SMALL}"


class TestOnLabels(PassContract):
    families = ("bert", "mpnet")

    @pytest.fixture
    def text(self, tmp_path: Path) -> Path:
        return small_workload(tmp_path / "texts")

    @pytest.fixture
    def technique(self) -> str:
        return "adapter:steps=20,batch=4,rank=2,precision=float32"
