"""Every pass keeps the contract that ships with the package."""

from __future__ import annotations

import pytest

from negawatt.testing import PassContract


class TestRoundToNearest(PassContract):
    @pytest.fixture
    def technique(self) -> str:
        return "rtn:bits=4,group=32"


class TestGptq(PassContract):
    @pytest.fixture
    def technique(self) -> str:
        return "gptq:bits=3,group=32"


class TestHqq(PassContract):
    @pytest.fixture
    def technique(self) -> str:
        return "hqq:bits=4,group=32"


class TestAwq(PassContract):
    @pytest.fixture
    def technique(self) -> str:
        return "awq:bits=3,group=32,points=4"


class TestMixed(PassContract):
    @pytest.fixture
    def technique(self) -> str:
        return "mixed:widths=4+8,average=6,group=32"
