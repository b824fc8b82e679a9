"""After how many tokens a pass has saved what it cost: the arithmetic, and the command."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from negawatt.artifact import Artifact
from negawatt.cli import cli
from negawatt.compress.payback import Payback, Spent
from negawatt.energy import Energy
from negawatt.engine import Settings
from negawatt.meter import Measurement, ProcessMeter
from negawatt.profiling import Summary, Window
from negawatt.testing.small_models import TEXT, small_model


@pytest.fixture(scope="module")
def blank() -> Measurement:
    meter = ProcessMeter(os.getpid())
    meter.start()
    return meter.stop()


def summary(blank: Measurement, costs: list[float], *, counted: bool = False) -> Summary:
    """Windows of 10 tokens that cost so much each, in CPU seconds, and in joules if those are counted."""
    windows = []
    for cost in costs:
        energy = Energy.measured(10 * cost) if counted else Energy.estimated(10 * cost, 5 * cost, 20 * cost)
        measurement = replace(blank, energy=energy)
        windows.append(Window((4,), (10,), (), (), 10 * cost, 1.0, 0.03, measurement))
    return Summary(tuple(windows))


def paid(blank: Measurement, before: list[float], after: list[float], counted: bool = False) -> Payback:
    spent = Spent(100.0, Energy.measured(200.0) if counted else Energy.estimated(200.0, 100.0, 400.0))
    sides = (summary(blank, costs, counted=counted) for costs in (before, after))
    return Payback(Settings(), *sides, spent)


def test_half_the_cost_pays_back_after_what_it_saves(blank: Measurement) -> None:
    found = paid(blank, [0.2] * 6, [0.1] * 6)
    assert found.tokens == (1000, 1000, 1000)  # 100 CPU-seconds at a tenth of one saved a token
    assert found.to_json()["basis"] == "cpu_seconds"
    assert found.text.startswith("paid back after 1,000 tokens (1,000–1,000): a token costs 2.00 times less")


def test_joules_that_were_counted_are_set_against_joules(blank: Measurement) -> None:
    found = paid(blank, [0.2] * 6, [0.1] * 6, counted=True)
    assert found.to_json()["basis"] == "joules"
    assert found.tokens == (2000, 2000, 2000)


def test_a_saving_that_is_not_shown_is_never_a_number(blank: Measurement) -> None:
    noise = paid(blank, [0.2, 0.2, 0.2, 0.2, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1, 0.1, 0.21])
    assert noise.tokens is None
    assert noise.to_json()["payback_tokens"] is None
    assert noise.text.startswith("not shown to be ever paid back")
    assert paid(blank, [0.1] * 6, [0.2] * 6).text == (
        "never paid back: a token costs 2.00 times more (2.00–2.00)"
    )


@given(
    st.lists(st.floats(0.01, 10), min_size=6, max_size=12),
    st.lists(st.floats(0.1, 2.0), min_size=12, max_size=12),
)
def test_the_interval_holds_the_figure(before: list[float], shares: list[float]) -> None:
    meter = ProcessMeter(os.getpid())
    meter.start()
    after = [cost * share for cost, share in zip(before, shares, strict=False)]
    found = paid(meter.stop(), before, after)
    if found.tokens is not None:
        least, likely, most = found.tokens
        assert 0 < least <= likely <= most
        assert found.ratio.low > 1


def test_the_command_tells_it_and_the_parts_make_the_whole(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT * 4, "utf-8")
    layers = 12  # of which three stay: a saving that one disturbed pair in six does not hide
    model, output = small_model(tmp_path / "model", num_hidden_layers=layers), tmp_path / "out"
    done = CliRunner().invoke(cli, [
        "compress", str(model), "--pass", "depth:ratio=0.75", "--calibration", str(tmp_path / "text.txt"),
        "--windows", "4", "--heldout", "2", "--length", "64", "--threads", "1", "--keep-worse",
        "--payback", "transformers:native:1", "-o", str(output), "--json",
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    whole = document["payback"]
    (step,) = document["passes"]
    assert 0 < step["payback"]["payback_tokens"] < whole["payback_tokens"] <= whole["payback_tokens_high"]
    parts = [step, document["reading"], document["judging"], whole["comparing"]]
    assert sum(part["cpu_s"] for part in parts) == pytest.approx(whole["spent"]["cpu_s"])
    assert step["payback"]["spent"]["cpu_s"] == pytest.approx(step["cpu_s"])
    assert Artifact.open(output).lineage[-1]["payback"] == step["payback"]


def test_an_engine_that_cannot_run_the_model_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT * 4, "utf-8")
    encoder = small_model(tmp_path / "encoder", "mpnet")
    done = CliRunner().invoke(cli, [
        "compress", str(encoder), "--pass", "rtn", "--calibration", str(tmp_path / "text.txt"),
        "--length", "64", "--payback", "transformers", "-o", str(tmp_path / "out"),
    ])  # fmt: skip
    assert done.exit_code == 1
    assert "turns texts into vectors and cannot write" in str(done.exception or done.output)
    assert not list(tmp_path.glob("out*"))
