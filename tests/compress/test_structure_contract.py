"""The passes that cut structure keep the contract of all passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from negawatt.testing import PassContract
from negawatt.testing.small_models import ENCODER_DECODERS, FAMILIES, TEXT

ONE_STACK = tuple(family for family in FAMILIES if family not in ENCODER_DECODERS)


class TestVocabulary(PassContract):
    families = ONE_STACK
    refused = ENCODER_DECODERS

    @pytest.fixture
    def text(self, tmp_path: Path) -> Path:
        """A text that does without many of the tokenizer's tokens."""
        place = tmp_path / "text.txt"
        place.write_text(TEXT.partition("Rain")[0] * 12, "utf-8")
        return place

    @pytest.fixture
    def technique(self) -> str:
        return "vocabulary:common=0"


class TestDepth(PassContract):
    families = ONE_STACK
    refused = ENCODER_DECODERS

    @pytest.fixture
    def technique(self) -> str:
        return "depth:ratio=0.34"


class TestDepthContiguous(PassContract):
    families = ("gemma3_text", "gpt2")

    @pytest.fixture
    def technique(self) -> str:
        return "depth:ratio=0.6,order=contiguous"


class TestWidth(PassContract):
    families = ("llama", "qwen2", "qwen3", "gemma3_text")
    refused = ("gpt2", "bert", "mpnet", "t5", "marian")

    @pytest.fixture
    def technique(self) -> str:
        return "width:ffn=0.3,kv_groups=1"


class TestWidthOfFeedForwardAlone(PassContract):
    families = ("gpt2", "bert", "mpnet", "t5", "marian")

    @pytest.fixture
    def technique(self) -> str:
        return "width:ffn=0.3"


class TestHeal(PassContract):
    families = ("llama", "qwen2", "gemma3_text", "gpt2")
    refused = ("bert", "mpnet", "t5", "marian")

    @pytest.fixture
    def technique(self) -> str:
        return "heal:steps=20,batch=2,rank=2,precision=float32"
