"""Configuration: a file, variables before it, and a sentence for what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from negawatt.carbon import GRAMS
from negawatt.energy import Energy
from negawatt.engine import Settings
from negawatt.errors import UsageError
from negawatt.serve.config import ModelConfig, ServerConfig, tuned_settings

TOML = """
host = "127.0.0.1"
port = 9000
keys = true
intensity = "DE"
price = "EUR:0.25"
litres_per_kwh = 1.5

[[model]]
artifact = "smollm2-135m-instruct"
name = "small"
batch = 4
threads = 2
sleep_s = 600
prefix_cache = false

[[model]]
artifact = "./other"
engine = "transformers"
"""


def written(folder: Path, text: str = TOML) -> Path:
    file = folder / "server.toml"
    file.write_text(text)
    return file


def test_a_file_names_models_with_their_own_settings(tmp_path: Path) -> None:
    config = ServerConfig.read(written(tmp_path), {})
    assert (config.port, config.needs_keys, config.on_loopback) == (9000, True, True)
    config.check()
    small, other = (model.options(None) for model in config.models)
    assert (small.settings.batch, small.settings.threads, small.settings.engine) == (4, 2, "llamacpp")
    assert (small.sleep_s, small.prefix_cache, small.warm_up) == (600, False, True)
    assert (other.settings.engine, other.settings.weight_format) == ("transformers", "fp32")
    assert small.session.capacity == 4 * small.settings.max_context


def test_variables_go_before_the_file(tmp_path: Path) -> None:
    told = {"NEGAWATT_SERVE_PORT": "9100", "NEGAWATT_SERVE_KEYS": "no", "NEGAWATT_SERVE_OTHER": "x"}
    config = ServerConfig.read(written(tmp_path), told)
    assert (config.port, config.keys) == (9100, False)
    with pytest.raises(UsageError, match="NEGAWATT_SERVE_PORT"):
        ServerConfig.read(None, {"NEGAWATT_SERVE_PORT": "many"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("port = ", "no TOML"),
        ("ports = 1", "there is no ports"),
        ('port = "1"', "expected port to be of the kind int"),
        ("keys = 1", "expected keys to be of the kind bool"),
        ("model = 3", r"expected tables \[\[model\]\]"),
        ("[[model]]\nname = 'x'", "artifact"),
        ("[[model]]\nartifact = 'x'\nbatches = 2", "there is no batches"),
    ],
)
def test_what_a_file_gets_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ServerConfig.read(written(tmp_path, text), {})


def test_others_may_only_come_with_keys_and_tls() -> None:
    models = (ModelConfig("m"),)
    for host, may in (("127.0.0.1", True), ("::1", True), ("localhost", True), ("10.0.0.5", False)):
        assert ServerConfig(models, host=host).on_loopback is may
    assert ServerConfig(models, host="0.0.0.0").needs_keys
    with pytest.raises(UsageError, match="without keys"):
        ServerConfig(models, host="0.0.0.0", keys=False).check()
    with pytest.raises(UsageError, match="without TLS"):
        ServerConfig(models, host="example.org").check()
    with pytest.raises(UsageError, match="both"):
        ServerConfig(models, certificate="c.pem").check()
    ServerConfig(models, host="0.0.0.0", certificate="c.pem", private_key="k.pem").check()
    ServerConfig(models, host="0.0.0.0", behind_proxy=True).check()
    with pytest.raises(UsageError, match="at least one model"):
        ServerConfig().check()


def test_a_tuned_artifact_brings_its_settings(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "artifact"
    folder.mkdir(parents=True)
    settings = {"engine": "openvino", "batch": 6, "threads": 1, "weight_format": "int8", "max_context": 700}
    (folder / "settings.json").write_text(json.dumps(settings))
    chosen = ModelConfig(str(tmp_path / "run"))
    assert chosen.place() == str(folder)
    options = chosen.options(tuned_settings(folder))
    assert (options.settings.engine, options.settings.weight_format) == ("openvino", "int8")
    assert ModelConfig("x", batch=2).options(settings).settings.batch == 2
    (folder / "settings.json").write_text("[]")
    with pytest.raises(UsageError, match=r"settings\.json"):
        tuned_settings(folder)
    assert tuned_settings(tmp_path) is None


def test_joules_turn_into_grams_litres_and_money_where_that_is_known(tmp_path: Path) -> None:
    energy = Energy.measured(3.6e6)
    made = ServerConfig(intensity="DE", price="EUR:0.25", litres_per_kwh=1.5).footprint()
    carbon, water, cost = made.carbon(energy, 1.8e9), made.water(energy), made.cost(energy, 1.8e9, 1.8e9 + 5)
    assert carbon is not None and carbon.unit == GRAMS and carbon.value and carbon.value > 50
    assert water is not None and water.value == pytest.approx(1.5)
    assert cost is not None and (cost.value, cost.unit) == (pytest.approx(0.25), "EUR")
    nothing = ServerConfig().footprint()
    assert nothing.carbon(energy, 0) is nothing.water(energy) is nothing.cost(energy, 0, 1) is None
    for wrong in ({"intensity": "watttime:X"}, {"price": "0.25"}):
        with pytest.raises(UsageError, match="expected"):
            ServerConfig(**wrong).footprint()  # type: ignore[arg-type]


def test_an_intensity_by_time_is_that_of_the_hour(tmp_path: Path) -> None:
    grid = tmp_path / "grid.csv"
    grid.write_text("start,g_per_kwh\n2027-01-15T08:00Z,100\n2027-01-15T09:00Z,300\n")
    made = ServerConfig(intensity=f"csv:{grid}").footprint()
    energy = Energy.measured(3.6e6)
    grams = [made.carbon(energy, 1800000000.0 + after_s) for after_s in (0, 3600)]  # 08:00 and 09:00
    assert [amount.value for amount in grams if amount] == [pytest.approx(100), pytest.approx(300)]
    late = made.carbon(energy, 1.9e9)  # not in the file: not known, and never 0
    assert late is not None and late.is_missing and "nothing is known" in late.reason


def test_layers_on_a_gpu_are_a_key_of_the_model() -> None:
    def settings(**keys: object) -> Settings:
        return ModelConfig("some-model", **keys).options(None).settings  # type: ignore[arg-type]

    assert (settings().device, settings().gpu_layers) == ("cpu", None)
    assert (settings(gpu_layers=12).device, settings(gpu_layers=12).gpu_layers) == ("vulkan", 12)
    assert settings(engine="transformers", gpu_layers=12).device == "cuda"
    assert settings(device="vulkan").placement == "all on vulkan"
    tuned = ModelConfig("a-run", gpu_layers=3).options(Settings("llamacpp", "vulkan", 12).to_json()).settings
    assert (tuned.device, tuned.gpu_layers) == ("vulkan", 3)
