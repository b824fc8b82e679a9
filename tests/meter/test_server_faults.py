"""Servers that time out, answer garbage, redirect or lie: a sentence in time, and no secret gone astray."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from negawatt.errors import SensorError, UsageError
from negawatt.meter import Integrated, PowerSource, SensorDenied
from negawatt.meter.fetch import Server
from negawatt.meter.plugs import ShellySource, TasmotaSource
from negawatt.meter.prometheus import PrometheusEnergySensor, PrometheusPowerSource
from negawatt.meter.redfish import RedfishSource
from negawatt.meter.sources import from_text
from negawatt.testing.devices import (
    FirstShellyDouble,
    JsonDevice,
    PrometheusDouble,
    RedfishDouble,
    ShellyDouble,
)

NEGAWATT = [sys.executable, "-c", "from negawatt.cli import main; main()", "measure"]
SOURCES: dict[str, Callable[[Server], PowerSource]] = {
    "shelly": ShellySource,
    "tasmota": TasmotaSource,
    "redfish": RedfishSource,
    "prometheus": lambda server: PrometheusPowerSource(server, "watts"),
}


def test_the_double_of_prometheus_answers_while_it_is_well() -> None:
    with PrometheusDouble(power_w=42.0) as server:
        [power] = PrometheusPowerSource(Server(server.url), "watts").read_power().values()
        counters = PrometheusEnergySensor(Server(server.url), "watts").read().counters
    assert power.power_w == 42.0
    assert counters["wall/prometheus"].energy_j == 42.0


@pytest.mark.parametrize(
    ("trouble", "error", "words"),
    [
        ("hang", SensorError, "no answer within 0.3 s"),
        ("drip", SensorError, "no answer within 0.3 s"),
        ("garbage", SensorError, "expected JSON"),
        ("redirect", SensorError, "redirects to http://elsewhere.invalid/"),
        ("denied", SensorDenied, "401"),
        ("error", SensorError, "500"),
        ("empty", SensorError, "not how Prometheus answers"),
    ],
)
def test_a_prometheus_in_trouble(trouble: str, error: type[SensorError], words: str) -> None:
    with PrometheusDouble() as server:
        server.trouble = trouble
        where = Server(server.url, deadline_s=0.3 if trouble in ("hang", "drip") else 2.5)
        begun = time.monotonic()
        with pytest.raises(error, match=words) as caught:
            PrometheusPowerSource(where, "watts").read_power()
        assert type(caught.value) is error
        assert time.monotonic() - begun < 3


@pytest.mark.parametrize("kind", SOURCES)
def test_a_redirect_to_another_host_is_not_followed_and_learns_no_password(kind: str) -> None:
    with JsonDevice() as thief, JsonDevice() as device:
        device.trouble, device.elsewhere = "redirect", f"{thief.url}/steal"
        source = SOURCES[kind](Server(device.url, "admin", "hunter2"))
        with pytest.raises(SensorError, match="redirects to"):
            source.read_power()
        assert "Authorization" in device.asked[0]
        assert thief.asked == []


KEYS = ["status", "data", "result", "resultType", "value", "Members", "@odata.id", "Id", "Power", "Links"]
KEYS += ["EnvironmentMetrics", "PowerWatts", "Reading", "gen", "apower", "StatusSNS"]
ANSWERS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["success", "vector", "/redfish/v1/Chassis/1", "//x/y", "\r\nX: y", 10**400]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answer=ANSWERS)
@pytest.mark.parametrize("kind", SOURCES)
def test_whatever_json_comes_back_there_is_a_number_or_a_sentence(kind: str, answer: object) -> None:
    with JsonDevice() as device:
        device.trouble, device.babble = "babble", json.dumps(answer).encode()
        with suppress(SensorError):
            powers = SOURCES[kind](Server(device.url)).read_power()
            assert all(abs(power.power_w) < float("inf") for power in powers.values())


class OddRedfish(JsonDevice):
    """A controller whose only chassis, or whose meter, is not what the standard says."""

    def __init__(self, chassis: object, meter: object = None) -> None:
        super().__init__()
        self.chassis, self.meter = chassis, meter

    def paths(self) -> dict[str, Callable[[], object]]:
        return {
            "/redfish/v1/Chassis": lambda: {"Members": [{"@odata.id": "/c"}]},
            "/c": lambda: self.chassis,
            "/m": lambda: self.meter,
        }


@pytest.mark.parametrize(
    "chassis", [[], 5, "text", {"Power": 3}, {"Power": None}, {"Power": {}}, {"Links": 1}]
)
def test_a_chassis_that_is_none(chassis: object) -> None:
    with OddRedfish(chassis) as device, pytest.raises(SensorError):
        RedfishSource(Server(device.url)).read_power()


@pytest.mark.parametrize("meter", [[], 5, {"PowerWatts": []}, {"PowerWatts": {"Reading": "much"}}])
def test_a_redfish_meter_that_is_none(meter: object) -> None:
    chassis = {"EnvironmentMetrics": {"@odata.id": "/m"}}
    with OddRedfish(chassis, meter) as device, pytest.raises(SensorError):
        RedfishSource(Server(device.url)).read_power()


@pytest.mark.parametrize(
    "body",
    [b"", b"\x00\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b"1" * 6000, b'"' + b"x" * (5 << 20) + b'"'],
    ids=["nothing", "bytes", "deep list", "deep object", "long number", "too long"],
)
@pytest.mark.parametrize("kind", SOURCES)
def test_bodies_that_are_no_answer(kind: str, body: bytes) -> None:
    with JsonDevice() as device:
        device.trouble, device.babble = "babble", body
        with pytest.raises(SensorError):
            SOURCES[kind](Server(device.url)).read_power()


def test_a_server_that_falls_ill_and_recovers_costs_the_time_between_only() -> None:
    with ShellyDouble(power_w=60.0) as device:
        sensor = Integrated(ShellySource(Server(device.url)))
        before = sensor.read()
        device.trouble = "garbage"
        with pytest.raises(SensorError):
            sensor.read()
        device.trouble = None
        time.sleep(0.2)
        after = sensor.read()
    joules = after.counters["wall/shelly"].energy_j - before.counters["wall/shelly"].energy_j
    assert joules == pytest.approx(60.0 * (after.at_s - before.at_s))


@pytest.mark.parametrize("trouble", ["garbage", "redirect", "error", "denied", "drip"])
def test_a_command_runs_as_ever_beside_a_server_in_trouble(trouble: str) -> None:
    with RedfishDouble() as device:
        device.trouble = trouble
        where = device.url.replace("http://", "http://admin:hunter2@")
        done = subprocess.run(
            [*NEGAWATT, "--sensor", f"redfish:{where}", "--", "sh", "-c", "echo out; exit 7"],
            capture_output=True,
            text=True,
            timeout=30,
            env={**os.environ, "COLUMNS": "300"},
        )
    assert done.returncode == 7
    assert done.stdout == "out\n"
    assert "redfish is not used: " in done.stderr
    assert "hunter2" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_goes_away_in_mid_window_is_told() -> None:
    from negawatt.meter import Meter, Station

    with FirstShellyDouble(power_w=60.0) as device:
        source = ShellySource(Server(device.url))
        source.polled_s = 0.02
        station = Station([Integrated(source)])
        with Meter(station) as meter:
            time.sleep(0.2)
            device.trouble = "error"
            time.sleep(0.2)
        station.close()
    spent = meter.measurement
    wall = spent.machine["wall/shelly"]
    assert "500" in wall.reason
    assert wall.low_j <= 60 * spent.duration_s <= wall.high_j


@pytest.mark.parametrize(
    "text", ["redfsh:https://admin:hunter2@bmc", "redfish:https://admin:hunter2@bmc:99999"]
)
def test_a_mistyped_sensor_does_not_spell_out_its_password(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_text(text)
    assert "hunter2" not in str(caught.value)


def test_an_address_with_a_password_in_it_is_refused_without_repeating_it() -> None:
    with pytest.raises(UsageError, match="give them apart") as caught:
        Server("http://admin:hunter2@bmc")
    assert "hunter2" not in str(caught.value)
