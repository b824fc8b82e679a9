"""Services over real HTTP on loopback: as documented, and as services are on a bad day."""

import json
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from negawatt.carbon import BritishIntensity, ElectricityMaps, WattTime, over
from negawatt.carbon.sources import intensity_from_text
from negawatt.carbon.web import Service
from negawatt.errors import DownloadError, NegawattError, UsageError

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
Reply = Callable[[BaseHTTPRequestHandler], None]


class Loopback:
    """A server that gives one reply after another, the last one for ever, and notes what was asked."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.asked: list[tuple[str, dict[str, str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.path, dict(self.headers)))
                reply = outer.replies.pop(0) if len(outer.replies) > 1 else outer.replies[0]
                reply(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def service(self, **changes: Any) -> Service:
        return Service(self.url, **{"deadline_s": 10.0, "pause_s": 0.01, "fresh_s": 900.0} | changes)


@pytest.fixture
def loopback(fresh_home: Path) -> Iterator[Loopback]:
    server = Loopback()
    yield server
    server.server.shutdown()
    server.server.server_close()


def answer(document: object, status: int = 200, **headers: str) -> Reply:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return reply


SILENT_S = 20.0
"""Longer than anybody waits; the threads of the server that are silent for so long are not waited for."""


def silence(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(SILENT_S)


def drip(handler: BaseHTTPRequestHandler) -> None:
    """A byte now and then: every single read succeeds, the whole never comes."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(round(SILENT_S / 0.05)):
        try:
            handler.wfile.write(b" ")
            handler.wfile.flush()
        except OSError:
            return
        time.sleep(0.05)


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


BRITISH = {
    "data": [
        {
            "from": "2026-03-01T12:00Z",
            "to": "2026-03-01T12:30Z",
            "intensity": {"forecast": 266, "actual": 263, "index": "moderate"},
        },
        {
            "from": "2026-03-01T12:30Z",
            "to": "2026-03-01T13:00Z",
            "intensity": {"forecast": 200, "actual": None, "index": "moderate"},
        },
    ]
}


# -- as documented -------------------------------------------------------------------------------------


def test_british_half_hours(loopback: Loopback) -> None:
    loopback.replies = [answer(BRITISH)]
    source = BritishIntensity(loopback.service())
    rate = over(source.steps(NOON, NOON + HOUR), NOON, NOON + HOUR)
    assert (rate.low, rate.value, rate.high) == (200, (263 + 200) / 2, 266)
    assert rate.unit == "gCO2e/kWh"
    assert loopback.asked[0][0] == "/intensity/2026-03-01T12:00Z/2026-03-01T13:00Z"


def hours(key: str, zone: str, first: datetime, *grams: int | None) -> dict[str, object]:
    entries = [
        {
            "carbonIntensity": g,
            "datetime": f"{first + i * HOUR:%Y-%m-%dT%H:%M:%S}.000Z",
            "isEstimated": bool(i % 2),
        }
        for i, g in enumerate(grams)
    ]
    return {"zone": zone, key: entries}


def test_electricity_maps_past_range_and_history(loopback: Loopback) -> None:
    loopback.replies = [answer(hours("data", "DE", NOON, 300, 400, None))]
    source = ElectricityMaps("DE", "secret", loopback.service())
    rate = over(source.steps(NOON, NOON + 2 * HOUR), NOON, NOON + 2 * HOUR)
    assert (rate.low, rate.value, rate.high) == (300, 350, 400)
    assert "estimated" in rate.source
    path, headers = loopback.asked[0]
    assert path.startswith("/carbon-intensity/past-range?zone=DE&start=2026-03-01T12")
    assert headers["auth-token"] == "secret"
    assert "secret" not in repr(source)

    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    loopback.replies = [answer(hours("history", "DE", now - 2 * HOUR, 100, 200))]
    recent = over(source.steps(now - 2 * HOUR, now), now - 2 * HOUR, now)
    assert recent.value == 150
    assert loopback.asked[-1][0] == "/carbon-intensity/history?zone=DE"


def test_an_answer_for_another_zone_is_refused(loopback: Loopback) -> None:
    loopback.replies = [answer(hours("data", "SE-SE3", NOON, 20))]
    with pytest.raises(DownloadError, match=r"asked for DE.*SE-SE3"):
        ElectricityMaps("DE", "secret", loopback.service()).steps(NOON, NOON + HOUR)


def test_watttime_logs_in_and_converts_pounds(loopback: Loopback) -> None:
    points = [
        {"point_time": f"{NOON + i * timedelta(minutes=5):%Y-%m-%dT%H:%M:%S+00:00}", "value": 1000.0}
        for i in range(12)
    ]
    meta = {"data_point_period_seconds": 300, "units": "lbs_co2_per_mwh", "signal_type": "co2_moer"}
    loopback.replies = [answer({"token": "abc"}), answer({"data": points, "meta": meta})]
    source = WattTime("CAISO_NORTH", "me", "secret", loopback.service())
    rate = over(source.steps(NOON, NOON + HOUR), NOON, NOON + HOUR)
    assert rate.value == pytest.approx(453.59237)
    assert "marginal" in rate.unit
    (login, first), (path, second) = loopback.asked
    assert (login, first["Authorization"]) == ("/login", "Basic " + b64encode(b"me:secret").decode())
    assert path.startswith("/v3/historical?region=CAISO_NORTH&")
    assert second["Authorization"] == "Bearer abc"
    source.steps(NOON, NOON + HOUR)
    assert len(loopback.asked) == 2  # the cache needs no login

    loopback.replies = [
        answer({"token": "abc"}),
        answer({"data": points, "meta": meta | {"units": "percent"}}),
    ]
    with pytest.raises(DownloadError, match="percent"):
        WattTime("PJM", "me", "secret", loopback.service()).steps(NOON, NOON + HOUR)


# -- the cache -----------------------------------------------------------------------------------------


def test_fresh_answers_come_from_the_cache_and_old_ones_say_their_age(
    loopback: Loopback, fresh_home: Path
) -> None:
    loopback.replies = [answer(BRITISH)]
    source = BritishIntensity(loopback.service())
    for _ in range(3):
        steps = source.steps(NOON + timedelta(minutes=3), NOON + timedelta(minutes=50))
    assert len(loopback.asked) == 1
    assert "ago" not in steps[0].rate.source

    (file,) = (fresh_home / "cache" / "carbon").iterdir()
    entry = json.loads(file.read_text())
    entry["obtained"] = (datetime.now(UTC) - 5 * HOUR).isoformat()
    file.write_text(json.dumps(entry))
    loopback.replies = [answer({}, 503)]
    stale = source.steps(NOON, NOON + HOUR)
    assert "as obtained 5 hours ago, because" in stale[0].rate.source
    assert "503" in stale[0].rate.source
    assert stale[0].rate.value == 263

    loopback.replies = [answer({}, 403)]
    with pytest.raises(DownloadError, match="refuses the key"):  # to be mended, not papered over
        source.steps(NOON, NOON + HOUR)

    loopback.replies = [answer(BRITISH)]
    assert "ago" not in source.steps(NOON, NOON + HOUR)[0].rate.source


def test_keys_are_not_in_the_cache_and_a_damaged_entry_is_none(loopback: Loopback, fresh_home: Path) -> None:
    loopback.replies = [answer(hours("data", "DE", NOON, 300))]
    source = ElectricityMaps("DE", "secret", loopback.service())
    source.steps(NOON, NOON + HOUR)
    (file,) = (fresh_home / "cache" / "carbon").iterdir()
    assert "secret" not in file.read_text()
    for damage in ("", "[]", '{"obtained": "2026-03-01"}', '{"obtained": 7, "document": {}}'):
        file.write_text(damage)
        assert source.steps(NOON, NOON + HOUR)[0].rate.value == 300


def test_a_cache_that_cannot_be_written_costs_nothing(loopback: Loopback, fresh_home: Path) -> None:
    fresh_home.mkdir()
    (fresh_home / "cache").write_text("in the way")
    loopback.replies = [answer(BRITISH)]
    assert BritishIntensity(loopback.service()).steps(NOON, NOON + HOUR)[0].rate.value == 263


# -- bad days ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "attempts"),
    [(answer({}, 500), 2), (answer({}, 429, Retry_After="0"), 2), (silence, 2), (drip, 2), (hang_up, 2)],
    ids=["broken", "busy", "silent", "dripping", "hanging up"],
)
def test_a_passing_fault_is_waited_out(loopback: Loopback, bad: Reply, attempts: int) -> None:
    loopback.replies = [bad, answer(BRITISH)]
    service = loopback.service(deadline_s=1.0 if bad in (silence, drip) else 10.0)
    assert BritishIntensity(service).steps(NOON, NOON + HOUR)[0].rate.value == 263
    assert len(loopback.asked) == attempts


@pytest.mark.parametrize(
    ("bad", "says", "attempts"),
    [
        (silence, "no answer within 0.3 s", 3),
        (drip, "no answer within 0.3 s", 3),
        (answer({}, 502), "502", 3),
        (answer({}, 429, Retry_After="3600"), "429", 1),
        (answer({}, 400), "400", 1),
        (answer({}, 401), "check it", 1),
        (answer({}, 302, Location="http://127.0.0.1:1/elsewhere"), "redirects to .*elsewhere", 1),
        (answer(b"<html>welcome to the hotel</html>"), "expected JSON", 1),
        (answer([1, 2]), "not as documented", 1),
        (answer({"data": "soon"}), "should be a list", 1),
        (answer({"data": ["x"]}), "not as documented", 1),
        (
            answer({"data": [{"from": "noon", "to": "one", "intensity": {"actual": 1}}]}),
            "should be a time",
            1,
        ),
        (answer({"data": [{"from": 7, "to": "one", "intensity": {"actual": "much"}}]}), "number", 1),
        (answer({"data": [{"intensity": {"actual": -3}}]}), "number", 1),
    ],
)
def test_a_lasting_fault_gets_a_sentence_in_time(
    loopback: Loopback, bad: Reply, says: str, attempts: int
) -> None:
    loopback.replies = [bad]
    service = loopback.service(deadline_s=0.3 if bad in (silence, drip) else 10.0)
    begun = time.monotonic()
    with pytest.raises(DownloadError, match=says):
        BritishIntensity(service).steps(NOON, NOON + HOUR)
    assert time.monotonic() - begun < 5
    assert len(loopback.asked) == attempts


def test_nobody_there(loopback: Loopback) -> None:
    nowhere = Service("http://127.0.0.1:1", deadline_s=0.3, pause_s=0.01)
    with pytest.raises(DownloadError, match="refused"):
        BritishIntensity(nowhere).steps(NOON, NOON + HOUR)
    with pytest.raises(UsageError, match="expected an address"):
        Service("carbonintensity.org.uk")


# -- by a word -----------------------------------------------------------------------------------------


def test_sources_by_a_word(tmp_path: Path) -> None:
    assert "Germany" in intensity_from_text("DE", None, None).source
    file = tmp_path / "g.csv"
    file.write_text("start,end,g_per_kwh\n2026-03-01T12:00Z,2026-03-01T13:00Z,123\n")
    assert intensity_from_text(f"csv:{file}", NOON, NOON + HOUR).value == 123
    with pytest.raises(UsageError, match="--start"):
        intensity_from_text(f"csv:{file}", None, None)
    with pytest.raises(UsageError, match="ELECTRICITY_MAPS_API_KEY"):
        intensity_from_text("electricity-maps:DE", NOON, NOON, {})
    with pytest.raises(UsageError, match="WATTTIME_PASSWORD"):
        intensity_from_text("watttime:X", NOON, NOON, {"WATTTIME_USER": "me"})
    with pytest.raises(UsageError, match="expected a source"):
        intensity_from_text("oracle:Delphi", NOON, NOON)
    with pytest.raises(NegawattError, match="cannot read"):
        intensity_from_text("csv:nowhere.csv", NOON, NOON + HOUR)
