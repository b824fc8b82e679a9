"""Sources against the real servers they talk to: Prometheus, and Network UPS Tools with its dummy driver.

Both come from Debian: ``apt-get install prometheus nut-server``.
"""

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from negawatt.errors import SensorError
from negawatt.meter import Integrated, SensorAbsent
from negawatt.meter.fetch import Server
from negawatt.meter.prometheus import PrometheusEnergySensor, PrometheusPowerSource
from negawatt.meter.ups import UpsSource


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def needed(program: str, package: str) -> str:
    # Debian's /usr/sbin/upsd is a wrapper that only obeys the system's configuration.
    found = shutil.which(program, path=f"/lib/nut:{os.environ['PATH']}")
    if found is None:
        pytest.fail(f"{program} is not installed; apt-get install {package}")
    return found


def wait_for(ready: Callable[[], object], deadline_s: float = 30) -> None:
    end = time.monotonic() + deadline_s
    while True:
        try:
            ready()
            return
        except (SensorError, OSError):
            assert time.monotonic() < end, "the server did not become ready"
            time.sleep(0.1)


class Exporter:
    """What Prometheus scrapes: two machines' power and energy, in its text format."""

    def __init__(self) -> None:
        self.watts, self.joules = 30.0, 1000.0
        exporter = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                lines = [
                    f'{name}{{host="{host}"}} {value}'
                    for host in "ab"
                    for name, value in (
                        ("power_watts", exporter.watts),
                        ("energy_joules", exporter.joules),
                    )
                ]
                body = ("\n".join(lines) + "\n").encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Exporter]]:
    program = needed("prometheus", "prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    exporter, port = Exporter(), free_port()
    (folder / "config.yml").write_text(
        "global: {scrape_interval: 500ms, scrape_timeout: 500ms}\n"
        "scrape_configs:\n"
        "  - job_name: test\n"
        f"    static_configs: [{{targets: ['127.0.0.1:{exporter.server.server_port}']}}]\n"
    )
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'config.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    server = Server(f"http://127.0.0.1:{port}")
    try:
        wait_for(lambda: PrometheusPowerSource(server, "power_watts").read_power())
        yield server, exporter
    finally:
        process.terminate()
        process.wait()
        exporter.server.shutdown()


def test_a_query_of_watts_is_summed_over_its_series(prometheus: tuple[Server, Exporter]) -> None:
    server, _ = prometheus
    [power] = PrometheusPowerSource(server, "power_watts").read_power().values()
    assert power.power_w == 60.0
    [power] = PrometheusPowerSource(server, "sum(power_watts) / 2").read_power().values()
    assert power.power_w == 30.0
    [power] = PrometheusPowerSource(server, "scalar(sum(power_watts))").read_power().values()
    assert power.power_w == 60.0


def test_a_query_of_joules_is_a_counter(prometheus: tuple[Server, Exporter]) -> None:
    server, exporter = prometheus
    sensor = PrometheusEnergySensor(server, "energy_joules", refresh_s=0.2)
    before = sensor.read().counters["wall/prometheus"].energy_j
    exporter.joules += 25.0
    end = time.monotonic() + 10
    while sensor.read().counters["wall/prometheus"].energy_j == before and time.monotonic() < end:
        time.sleep(0.05)
    assert sensor.read().counters["wall/prometheus"].energy_j - before == 50.0


@pytest.mark.parametrize(
    ("expression", "words"),
    [("no_such_series", "returns no number now"), ("sum(", "400"), ("1/0 * power_watts", "no number")],
)
def test_queries_that_give_no_number_get_a_sentence(
    prometheus: tuple[Server, Exporter], expression: str, words: str
) -> None:
    with pytest.raises(SensorError, match=words):
        PrometheusPowerSource(prometheus[0], expression).read_power()


@pytest.fixture(scope="module")
def upsd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """A real upsd with two dummy UPSes: one tells its power, the other its load only."""
    server, driver = needed("upsd", "nut-server"), needed("dummy-ups", "nut-server")
    folder = tmp_path_factory.mktemp("nut")
    port = free_port()
    files = {
        "nut.conf": "MODE=standalone\n",
        "ups.conf": "".join(
            f"[{name}]\n driver = dummy-ups\n port = {folder}/{name}.dev\n mode = dummy-loop\n"
            for name in ("smart", "plain", "mute")
        ),
        "upsd.conf": f"LISTEN 127.0.0.1 {port}\nMAXAGE 15\n",
        "upsd.users": "",
        "smart.dev": "ups.status: OL\nups.realpower: 123\n",
        "plain.dev": "ups.status: OL\nups.load: 20\nups.realpower.nominal: 600\n",
        "mute.dev": "ups.status: OL\n",
    }
    for name, content in files.items():
        (folder / name).write_text(content)
        (folder / name).chmod(0o640)
    who = "root" if os.getuid() == 0 else os.environ["USER"]
    environment = {
        **os.environ,
        "NUT_CONFPATH": str(folder),
        "NUT_STATEPATH": str(folder),
        "NUT_ALTPIDPATH": str(folder),
    }
    folder.chmod(0o700)
    processes = [
        subprocess.Popen(
            [driver, "-F", "-u", who, "-a", name],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for name in ("smart", "plain", "mute")
    ]
    wait_for(lambda: [os.stat(folder / f"dummy-ups-{name}") for name in ("smart", "plain", "mute")])
    processes.append(
        subprocess.Popen(
            [server, "-F", "-u", who], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    )
    try:
        wait_for(lambda: UpsSource("127.0.0.1", "smart", port).read_power())
        wait_for(lambda: UpsSource("127.0.0.1", "plain", port).read_power())
        yield port, folder
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def test_a_ups_that_tells_its_power(upsd: tuple[int, Path]) -> None:
    [power] = UpsSource("127.0.0.1", "smart", upsd[0]).read_power().values()
    assert power.power_w == 123.0
    assert power.boundary == "wall"
    assert list(Integrated(UpsSource("127.0.0.1", "smart", upsd[0])).read().counters) == ["wall/ups"]


def test_a_ups_that_tells_its_load_deserves_a_wider_interval(upsd: tuple[int, Path]) -> None:
    [power] = UpsSource("127.0.0.1", "plain", upsd[0]).read_power().values()
    assert power.power_w == pytest.approx(120.0)
    assert power.accuracy == pytest.approx(0.075)


def test_a_ups_that_tells_nothing_and_one_that_is_not_there(upsd: tuple[int, Path]) -> None:
    with pytest.raises(SensorAbsent, match="neither its power nor its load"):
        UpsSource("127.0.0.1", "mute", upsd[0]).read_power()
    with pytest.raises(SensorError, match="UNKNOWN-UPS"):
        UpsSource("127.0.0.1", "nobody", upsd[0]).read_power()


def test_no_upsd_and_one_that_says_nothing() -> None:
    with pytest.raises(SensorError, match="refused"):
        UpsSource("127.0.0.1", "ups", free_port()).read_power()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        with pytest.raises(SensorError, match=r"no answer within 0.2 s"):
            UpsSource("127.0.0.1", "ups", silent.getsockname()[1], deadline_s=0.2).read_power()
        assert time.monotonic() - begun < 3
