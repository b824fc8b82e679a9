"""What is left out before its weights are made."""

from __future__ import annotations

from pathlib import Path

import pytest

from negawatt.artifact.shape import ModelShape
from negawatt.engine import Settings
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.outlook import Outlook, Seen

SHAPE = ModelShape("llama", 30, 576, 9, 3, 64, 1536, 49152, 135_000_000, True, 2048)
EIGHT_BITS = Candidate(Settings(engine="llamacpp", weight_format="q8_0"))
LAYERS_BYTES, HEAD_BYTES = 106e6 * 8.5 / 8, 28e6 * 8.5 / 8


@pytest.fixture
def outlook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Outlook:
    """In a home without experience of its own: the published rates foretell."""
    monkeypatch.setenv("NEGAWATT_HOME", str(tmp_path))
    found = Outlook({"": SHAPE})
    found.learn(EIGHT_BITS, Seen(0.010, LAYERS_BYTES, HEAD_BYTES))
    return found


def test_what_takes_most_of_the_time_is_left_out_unless_it_is_made_or_required(outlook: Outlook) -> None:
    cut = Candidate(EIGHT_BITS.settings, ("vocabulary:common=4096",))
    making_s = outlook.making_s(cut)
    assert 100 < making_s < 250
    assert outlook.against(cut, 0.010, 3 * making_s, made=False) is None
    short_s = 1.5 * making_s
    found = outlook.against(cut, 0.010, short_s, made=False)
    assert found is not None
    assert f"making it takes about {making_s:.0f} s, and {short_s:.0f} s are left" in found.why
    assert outlook.against(cut, 0.010, short_s, made=True) is None
    assert outlook.against(cut, 0.010, short_s, made=False, required=True) is None
    assert outlook.against(cut, 0.010, 0.9 * making_s, made=False, required=True) is not None


def test_what_cannot_come_below_the_best_is_left_out(outlook: Outlook) -> None:
    """Reading fewer rows of the head saves a fifth of the bytes at most, and the best costs half."""
    cut = Candidate(EIGHT_BITS.settings, ("vocabulary:common=4096",))
    foretold = outlook.prospect(cut)
    assert foretold is not None
    assert foretold.cost == pytest.approx(0.0081, rel=0.05)
    found = outlook.against(cut, 0.005, 1e6, made=False)
    assert found is not None
    assert "times what is expected without it" in found.why
