"""``negawatt doctor``: the document and the page."""

import json

from click.testing import CliRunner

from negawatt.cli.doctor import command


def test_the_document_has_its_promised_form() -> None:
    done = CliRunner().invoke(command, ["--json"])
    assert done.exit_code == 0
    document = json.loads(done.stdout)
    assert document.keys() == {"machine", "sensors", "engines", "devices", "limits", "notes"}
    assert document["machine"]["cores"] > 0
    names = [sensor["name"] for sensor in document["sensors"]]
    assert {"rapl", "perf", "nvml", "amdsmi", "battery"} < set(names)
    assert names[-1] == "cpu-time model"
    for sensor in document["sensors"]:
        assert {"name", "status", "reason", "remedy"} <= sensor.keys()
        assert sensor["status"] in ("ok", "dead", "denied", "absent")
        assert sensor["reason"]
    assert {engine["name"] for engine in document["engines"]} >= {"transformers", "llamacpp", "openvino"}
    assert [row["name"] for row in document["limits"]] == ["cpu power", "cpu clock", "gpu power", "gpu clock"]
    for row in document["limits"]:
        assert row["status"] in ("ok", "denied", "absent") and row["reason"]
    for engine in document["engines"]:
        assert {"name", "status", "version", "reason", "remedy"} <= engine.keys()
    assert {row["engine"] for row in document["devices"]} == {"llamacpp", "transformers"}
    for row in document["devices"]:
        assert {"name", "device", "memory_bytes", "remedy"} <= row.keys()
        assert row["status"] in ("ok", "absent") and row["reason"]


def test_the_page_names_every_sensor_and_the_way_energy_is_obtained() -> None:
    done = CliRunner().invoke(command, [])
    assert done.exit_code == 0
    for word in (
        "Machine",
        "Sensors",
        "Engines",
        "Devices",
        "Limits",
        "cpu power",
        "rapl",
        "perf",
        "nvml",
        "cpu-time model",
        "Energy",
        "W a busy core",
    ):
        assert word.lower() in " ".join(done.stdout.lower().split())
