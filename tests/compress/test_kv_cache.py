"""Precisions of the key-value cache: what the pages hold, what it costs, and which is recommended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from negawatt.artifact import Artifact
from negawatt.cli import cli
from negawatt.compress.kv_cache import LIMIT_NATS, Cache, caches_of, compared
from negawatt.engine import Settings
from negawatt.errors import UsageError
from negawatt.testing.small_models import TEXT, small_model
from negawatt.workload import Ratio


def cache(kl: tuple[float, ...], ratio: tuple[float, float, float] = (1.0, 0.9, 1.1)) -> Cache:
    return Cache("u8", "u8", kl, tuple(1.0 for _ in kl), 1.0, Ratio(*ratio, 6, 0.95, "by hand"))


def test_a_cache_will_do_on_what_is_shown_and_not_on_what_is_likely() -> None:
    assert cache((0.001, 0.002, 0.001)).will_do
    scattered = cache((0.0, 0.0, 0.02))
    assert sum(scattered.kl) / 3 < LIMIT_NATS < scattered.kl_high
    assert not scattered.will_do
    assert not cache((0.001,)).will_do


def test_a_cache_that_costs_more_will_not_do() -> None:
    assert not cache((0.001, 0.002, 0.001), (0.9, 0.85, 0.95)).will_do
    assert cache((0.001, 0.002, 0.001), (1.2, 1.1, 1.3)).will_do


def test_an_engine_with_one_precision_leaves_no_choice() -> None:
    with pytest.raises(UsageError, match="transformers has one precision"):
        caches_of(Settings(engine="transformers"))
    assert caches_of(Settings(engine="llamacpp")) == ["f16", "q8_0"]


def test_a_coarser_cache_differs_and_the_most_precise_does_not(tmp_path: Path) -> None:
    pytest.importorskip("openvino_genai")
    artifact = Artifact.open(small_model(tmp_path / "model"))
    windows = torch.randint(5, 400, (3, 48), generator=torch.Generator().manual_seed(0))
    found = compared(artifact, windows, Settings(engine="openvino", threads=1))
    kl = {each["kv_cache"]: each["kl"] for each in found["caches"]}
    assert kl["f16"] == 0
    assert 0 < kl["u8"] < 1
    assert found["decoded"] == 47
    assert found["recommended"] in kl
    assert found["cpu_s"] > 0
    assert all(each["ratio"]["low"] <= each["ratio"]["value"] for each in found["caches"])


def test_the_recommendation_is_kept_with_the_result(tmp_path: Path) -> None:
    pytest.importorskip("openvino_genai")
    (tmp_path / "text.txt").write_text(TEXT * 4, "utf-8")
    given = [
        "compress", str(small_model(tmp_path / "model")), "--pass", "rtn:bits=8", "--calibration",
        str(tmp_path / "text.txt"), "--heldout", "2", "--length", "64", "--json", "-o", str(tmp_path / "out"),
    ]  # fmt: skip
    done = CliRunner().invoke(cli, [*given, "--kv-cache", "openvino:native:1"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["kv_cache"]["recommended"] in ("u8", "f16", "bf16")
    assert Artifact.open(tmp_path / "out").lineage[-1]["kv_cache"] == document["kv_cache"]
    done = CliRunner().invoke(cli, [*given[:-1], str(tmp_path / "other"), "--kv-cache", "transformers"])
    assert isinstance(done.exception, UsageError)
    assert not (tmp_path / "other").exists()
