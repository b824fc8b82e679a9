"""Adapters keep the contract of all passes."""

from __future__ import annotations

import pytest

from negawatt.testing import PassContract

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
