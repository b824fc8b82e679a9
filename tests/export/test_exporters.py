"""Exporters against the real things: Prometheus, promtool, an OTLP receiver, CSV and Parquet readers."""

import csv
import os
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest
from receiver import Receiver

from negawatt.energy import Provenance
from negawatt.errors import UsageError
from negawatt.export import Exporter, ExportError, Outlet
from negawatt.export.csv import CsvExporter
from negawatt.export.otlp import OtlpExporter
from negawatt.export.parquet import ParquetExporter
from negawatt.export.prometheus import PrometheusExporter
from negawatt.export.rising import Rising
from negawatt.meter.fetch import Server
from negawatt.meter.prometheus import query
from negawatt.monitor import Component, Joules, Line, Sample, group

DOCKER = group(f"/docker/{'ab' * 32}")
NONE = Joules(0.0, 0.0, 0.0)


def sample(joules: float = 60.0, at_s: float = 1e9, **changes: object) -> Sample:
    """A machine with a processor, a GPU that gave no reading and a wall meter, and two processes."""
    part = Joules(joules / 4, joules / 8, joules / 2)
    whole = Joules(joules, joules * 0.9, joules * 1.2)
    one = Line("one", 40, DOCKER, part, part, 1.5, 1_000_000)
    two = Line('t"w\\o', 41, group("/"), part, part, 0.5, 2_000_000)
    made = Sample(
        at_s=at_s,
        duration_s=2.0,
        elapsed_s=100.0,
        components=(
            Component("cpu/0", "chip", None, Provenance.MEASURED, whole, whole, covered_s=2.0),
            Component("cpu/0/core", "chip", "cpu/0", Provenance.MEASURED, part, part, covered_s=2.0),
            Component("wall/desk", "wall", None, Provenance.DERIVED, whole, whole),
        ),
        idle=Line("", 0, None, part, part),
        idle_reason="",
        unattributed=Line("", 0, None, part, part),
        processes=[one, two],
        ended=Line("", 0, None, NONE, NONE),
        groups=[one._replace(name=DOCKER.name, pid=0), two._replace(name="/", pid=0)],
        ended_groups=Line("", 0, None, NONE, NONE),
        busy_s=2.0,
        steal_s=0.0,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def lost() -> Sample:
    """The same, when the processor's counter gives no reading."""
    first, *others = sample().components
    return sample(components=(first._replace(spent=None, reason="unplugged", failing=True), *others))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def needed(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.fail(f"{program} is not installed; apt-get install prometheus")
    return found


def wait_for(condition: Callable[[], object], deadline_s: float = 30) -> None:
    end = time.monotonic() + deadline_s
    while True:
        try:
            if condition():
                return
        except Exception:
            if time.monotonic() > end:
                raise
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


# -- Prometheus ----------------------------------------------------------------------------------------


@pytest.fixture
def endpoint() -> Iterator[PrometheusExporter]:
    exporter = PrometheusExporter(0)
    exporter.open()
    yield exporter
    exporter.close()


def scrape(exporter: PrometheusExporter) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{exporter.port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def test_promtool_finds_nothing_to_complain_about(endpoint: PrometheusExporter) -> None:
    endpoint.export(sample())
    done = subprocess.run(
        [needed("promtool"), "check", "metrics"], input=scrape(endpoint), text=True, capture_output=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_is_missing_has_no_series(endpoint: PrometheusExporter) -> None:
    assert "negawatt" not in scrape(endpoint)  # before the first sample
    endpoint.export(sample())
    text = scrape(endpoint)
    assert 'negawatt_component_joules_total{boundary="chip",component="cpu/0"' in text
    assert "negawatt_idle_joules_total" in text
    endpoint.export(replace(lost(), idle=None, idle_reason="unknown"))
    text = scrape(endpoint)
    assert 'component="cpu/0"' not in text
    assert 'component="wall/desk"' in text
    assert "negawatt_idle_joules_total" not in text
    assert "negawatt_idle_known 0.0" in text


def test_counters_never_fall() -> None:
    rising = Rising()
    seen = []
    for value in (1.0, 3.0, 2.0, 2.5, 4.0):
        seen.append(rising("a", value))
        rising.turn()
    assert seen == [1.0, 3.0, 3.0, 3.0, 4.0]
    rising.turn()
    assert rising("a", 0.5) == 0.5  # gone for a round: a new counter


def test_only_this_machine_is_answered(endpoint: PrometheusExporter) -> None:
    assert endpoint._server.server_address[0] == "127.0.0.1"


def test_a_port_that_is_taken_gets_a_sentence(endpoint: PrometheusExporter) -> None:
    with pytest.raises(ExportError, match=f"port {endpoint.port} .* in use"):
        PrometheusExporter(endpoint.port).open()


def test_a_real_prometheus_server_scrapes_it(endpoint: PrometheusExporter, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "config.yml").write_text(
        "global: {scrape_interval: 500ms, scrape_timeout: 500ms}\n"
        "scrape_configs:\n  - job_name: negawatt\n"
        f"    static_configs: [{{targets: ['127.0.0.1:{endpoint.port}']}}]\n"
    )
    endpoint.export(sample(60.0))
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(
        [
            needed("prometheus"),
            f"--config.file={tmp_path / 'config.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=log,
        stderr=log,
    )
    server = Server(f"http://127.0.0.1:{port}")
    try:
        for expression, value in (
            ('negawatt_component_joules_total{component="cpu/0"}', 60),
            ('negawatt_process_joules_total{pid="40"}', 15),
            ("sum(negawatt_process_joules_total)", 30),
            (f'negawatt_group_joules_total{{container="{"ab" * 32}",kind="docker"}}', 15),
            ('negawatt_component_high_joules_total{component="cpu/0"}', 72),
            ('negawatt_component_watts{component="cpu/0"}', 30),
        ):  # where a look took too long its series are gone until the next one
            wait_for(lambda expression=expression, value=value: query(server, expression) == value)
        endpoint.export(sample(160.0))
        increase = 'increase(negawatt_component_joules_total{component="cpu/0"}[1m])'
        wait_for(lambda: query(server, increase) > 60)
    finally:
        process.terminate()
        process.wait()
        log.close()


# -- OTLP ----------------------------------------------------------------------------------------------


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def test_a_receiver_decodes_the_hardware_conventions(receiver: Receiver) -> None:
    exporter = OtlpExporter(receiver.url, push_s=0.0)
    exporter.open()
    exporter.export(sample())
    exporter.close()
    energy = {a["hw.id"]: (value, a) for value, a in receiver.points("hw.energy")}
    assert energy["cpu/0"][0] == 60
    assert energy["cpu/0"][1]["hw.type"] == "cpu"
    assert energy["cpu/0"][1]["negawatt.provenance"] == "measured"
    assert energy["cpu/0/core"][1]["hw.parent"] == "cpu/0"
    assert "wall/desk" not in energy  # contains the chips: hw.host.energy and nothing else
    [(value, attributes)] = receiver.points("hw.host.energy")
    assert (value, attributes["hw.id"], attributes["negawatt.boundary"]) == (60, "wall/desk", "wall")
    assert {a["hw.id"]: value for value, a in receiver.points("hw.power")} == {"cpu/0": 30, "cpu/0/core": 7.5}
    assert {a["hw.id"]: v for v, a in receiver.points("negawatt.hw.energy.high")}["cpu/0"] == 72
    [one] = [a for _, a in receiver.points("negawatt.process.energy") if a["process.pid"] == 40]
    assert one["container.id"] == "ab" * 32
    resources = receiver.requests[0].resource_metrics[0].resource.attributes
    assert {a.key for a in resources} >= {"service.name", "host.name"}
    units = {m.name: m.unit for m in receiver.requests[0].resource_metrics[0].scope_metrics[0].metrics}
    assert (units["hw.energy"], units["hw.power"]) == ("J", "W")
    metrics = {m.name: m for m in receiver.requests[0].resource_metrics[0].scope_metrics[0].metrics}
    assert metrics["hw.energy"].sum.is_monotonic
    assert metrics["hw.energy"].sum.aggregation_temporality == 2  # cumulative


def test_what_is_missing_is_not_pushed(receiver: Receiver) -> None:
    exporter = OtlpExporter(receiver.url, push_s=0.0)
    exporter.open()
    exporter.export(lost())
    exporter.close()
    assert {a["hw.id"] for _, a in receiver.points("hw.energy")} == {"cpu/0/core"}


def test_the_last_sample_is_pushed_at_the_end(receiver: Receiver) -> None:
    exporter = OtlpExporter(receiver.url, push_s=1000.0)
    exporter.open()
    for joules in (10.0, 20.0, 30.0):
        exporter.export(sample(joules))
    exporter.close()
    assert len(receiver.requests) == 2
    assert receiver.points("negawatt.process.energy")[0][0] == 7.5


@pytest.mark.parametrize("status", [400, 503])
def test_a_collector_that_refuses_gets_a_sentence(receiver: Receiver, status: int) -> None:
    receiver.status = status
    exporter = OtlpExporter(receiver.url, push_s=0.0)
    exporter.open()
    with pytest.raises(ExportError, match="did not take the metrics"):
        exporter.export(sample())


def test_an_address_that_is_none_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="http://localhost:4318"):
        OtlpExporter("localhost:4318")


# -- CSV and Parquet -----------------------------------------------------------------------------------


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append_csv(path: Path, *samples: Sample) -> None:
    exporter = CsvExporter(path)
    exporter.open()
    for each in samples:
        exporter.export(each)
    exporter.close()


def test_csv_is_appended_to_and_its_kinds_add_up(tmp_path: Path) -> None:
    path = tmp_path / "new" / "energy.csv"
    append_csv(path, sample())
    append_csv(path, sample(at_s=1e9 + 2))
    rows = read_csv(path)
    assert len(rows) == 2 * 10
    first = [row for row in rows if row["time"].startswith("2001-09-09T01:46:40")]
    charged = [float(r["energy_j"]) for r in first if r["kind"] in ("idle", "unattributed", "process")]
    [machine] = [r for r in first if r["kind"] == "machine"]
    assert sum(charged) == float(machine["energy_j"]) == 60
    assert {r["name"] for r in first if r["kind"] == "process"} == {"one", 't"w\\o'}


def test_missing_is_an_empty_field_with_its_reason(tmp_path: Path) -> None:
    append_csv(tmp_path / "a.csv", lost())
    [machine] = [row for row in read_csv(tmp_path / "a.csv") if row["kind"] == "machine"]
    assert (machine["energy_j"], machine["provenance"]) == ("", "missing")
    assert "unplugged" in machine["reason"]


def test_a_torn_line_stays_torn_and_nothing_else_is(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    append_csv(path, sample())
    whole = path.read_text()
    path.write_text(whole + "2026-01-01T00:00:00,2.0,mach")
    append_csv(path, sample())
    assert path.read_text() == whole + "2026-01-01T00:00:00,2.0,mach\n" + whole.partition("\n")[2]


def test_a_file_with_other_columns_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ExportError, match="other columns"):
        CsvExporter(path).open()
    assert path.read_text() == "a,b\n1,2\n"


def test_two_writers_do_not_share_a_file(tmp_path: Path) -> None:
    first = CsvExporter(tmp_path / "a.csv")
    first.open()
    with pytest.raises(ExportError, match="another process writes to it"):
        CsvExporter(tmp_path / "a.csv").open()
    first.close()


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    """The limit on a file's size fails a write as a full disk does, half-way through."""
    path = tmp_path / "a.csv"
    append_csv(path, sample())
    whole = path.read_text()
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 300, resource.RLIM_INFINITY))
            exporter = CsvExporter(path)
            exporter.open()
            try:
                exporter.export(sample())
            except ExportError:
                os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert path.read_text() == whole
    with pytest.raises(ExportError, match="cannot be written"):
        CsvExporter(path / "beneath").open()


def test_a_full_device_gets_a_sentence() -> None:
    with pytest.raises(ExportError, match="No space left"):
        append_csv(Path("/dev/full"), sample())


def test_parquet_is_a_folder_of_whole_parts(tmp_path: Path) -> None:
    folder = tmp_path / "energy.parquet"
    for at_s in (1e9, 1e9 + 2):
        exporter = ParquetExporter(folder)
        exporter.open()
        exporter.export(sample(at_s=at_s))
        exporter.export(lost())
        exporter.close()
    assert len(list(folder.glob("*.parquet"))) == 2
    table = pyarrow.parquet.read_table(folder)
    assert str(table.schema.field("time").type) == "timestamp[ms, tz=UTC]"
    rows = table.to_pylist()
    machine = [row for row in rows if row["kind"] == "machine"]
    assert sorted(row["energy_j"] is None for row in machine) == [False, False, True, True]
    assert {row["pid"] for row in rows if row["kind"] == "process"} == {40, 41}


def test_parquet_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("")
    with pytest.raises(ExportError, match="name a folder"):
        ParquetExporter(tmp_path / "a.parquet").open()


# -- the outlet ----------------------------------------------------------------------------------------


class Odd(Exporter):
    """An exporter that does what a test wants."""

    def __init__(self, act: Callable[[Sample], None]) -> None:
        self.name, self._act = "odd", act
        self.got: list[float] = []

    def export(self, each: Sample) -> None:
        self._act(each)
        self.got.append(each.at_s)


def test_one_that_fails_is_told_once_and_tried_again() -> None:
    def fail_twice(each: Sample) -> None:
        if each.at_s < 2:
            raise ValueError("no\nluck")

    odd, good, said = Odd(fail_twice), Odd(lambda _: None), []
    with Outlet([odd, good], said.append) as outlet:
        for at_s in range(4):
            outlet.export(sample(at_s=float(at_s)))
    assert said == ["odd: ValueError: no luck"]
    assert odd.got == [2.0, 3.0]
    assert good.got == [0.0, 1.0, 2.0, 3.0]


def test_one_that_hangs_holds_nobody_up() -> None:
    never, good, said = threading.Event(), Odd(lambda _: None), []
    hanging = Odd(lambda _: never.wait(60) and None)
    outlet = Outlet([hanging, good], said.append)
    outlet.start()
    begun = time.monotonic()
    for at_s in range(2000):
        outlet.export(sample(at_s=float(at_s)))
    assert time.monotonic() - begun < 5
    wait_for(lambda: 1999.0 in good.got)
    begun = time.monotonic()
    outlet.close(0.5)
    assert time.monotonic() - begun < 2
    assert said == ["odd: did not finish in time; what it still held is lost"]
    never.set()
