"""CodeCarbon's file and tracker: its columns, its calls, and nothing where it would write a zero."""

from __future__ import annotations

import csv
import logging
import time
from pathlib import Path

import pytest

from negawatt import NegawattError
from negawatt.carbon import yearly
from negawatt.integrations.codecarbon import EmissionsTracker, OfflineEmissionsTracker, track_emissions
from negawatt.integrations.codecarbon_csv import COLUMNS
from negawatt.meter import Station

CODECARBON_3_3_2 = (
    "timestamp,project_name,run_id,experiment_id,duration,emissions,emissions_rate,cpu_power,gpu_power,"
    "ram_power,cpu_energy,gpu_energy,ram_energy,energy_consumed,water_consumed,country_name,country_iso_code,"
    "region,cloud_provider,cloud_region,os,python_version,codecarbon_version,cpu_count,cpu_model,gpu_count,"
    "gpu_model,longitude,latitude,ram_total_size,tracking_mode,cpu_utilization_percent,gpu_utilization_percent,"
    "ram_utilization_percent,ram_used_gb,on_cloud,pue,wue"
)
"""The first line of a file that CodeCarbon 3.3.2 wrote."""


def spin(cpu_s: float) -> None:
    end = time.thread_time() + cpu_s
    while time.thread_time() < end:
        pass


def rows(folder: Path, name: str = "emissions.csv") -> list[dict[str, str]]:
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_columns_are_codecarbons() -> None:
    assert ",".join(COLUMNS) == CODECARBON_3_3_2


def test_a_tracker_writes_a_row_and_returns_kilograms(tmp_path: Path, station: Station) -> None:
    tracker = OfflineEmissionsTracker(
        "mine", output_dir=tmp_path, country_iso_code="DEU", pue=1.5, wue=2.0, station=station
    )
    tracker.start()
    spin(0.05)
    kg = tracker.stop()
    [row] = rows(tmp_path)
    assert tuple(row) == COLUMNS
    kwh = float(row["energy_consumed"])
    assert kg == pytest.approx(kwh * yearly("DEU").value / 1000)
    assert float(row["emissions"]) == kg == tracker.final_emissions
    assert float(row["water_consumed"]) == pytest.approx(2 * kwh)
    assert kwh == pytest.approx(float(row["cpu_energy"]) + float(row["ram_energy"]), rel=1e-9)
    power_w = float(row["cpu_power"]) + float(row["ram_power"])
    assert kwh * 3.6e6 / float(row["duration"]) == pytest.approx(power_w)
    assert (row["project_name"], row["country_name"], row["tracking_mode"]) == ("mine", "Germany", "process")
    assert (row["gpu_energy"], row["gpu_count"]) == ("", ""), "unknown is no zero"
    assert tracker.stop() == kg, "stopping twice says the same and writes nothing"
    assert len(rows(tmp_path)) == 1


def test_without_a_country_energy_is_known_and_emissions_are_not(
    tmp_path: Path, station: Station, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "negawatt"):
        with EmissionsTracker(output_dir=tmp_path, station=station, measure_power_secs=1, log_level="error"):
            spin(0.02)
    [row] = rows(tmp_path)
    assert row["emissions"] == row["emissions_rate"] == ""
    assert float(row["energy_consumed"]) > 0
    assert "no effect here: log_level, measure_power_secs" in caplog.text
    assert "emissions stay unknown" in caplog.text


def test_flushing_goes_on_and_keeps_one_row(tmp_path: Path, station: Station) -> None:
    with EmissionsTracker(
        output_dir=tmp_path, force_carbon_intensity_g_co2e_kwh=100, station=station
    ) as tracker:
        spin(0.02)
        early = tracker.flush()
        spin(0.02)
    [row] = rows(tmp_path)
    assert early is not None
    assert 0 < early < float(row["emissions"])


def test_runs_are_appended_in_the_order_of_the_files_own_columns(tmp_path: Path, station: Station) -> None:
    backwards = ",".join(reversed(COLUMNS))
    old = ",".join("old" for _ in COLUMNS)
    (tmp_path / "emissions.csv").write_text(f"{backwards}\n{old}\n")
    with EmissionsTracker("new", output_dir=tmp_path, station=station):
        pass
    first, second = rows(tmp_path)
    assert set(first.values()) == {"old"}
    assert second["project_name"] == "new"
    assert (tmp_path / "emissions.csv").read_text().startswith(backwards)


def test_a_file_with_other_columns_is_kept_beside(tmp_path: Path, station: Station) -> None:
    (tmp_path / "emissions.csv").write_text("a,b\n1,2\n")
    with EmissionsTracker(output_dir=tmp_path, station=station):
        pass
    assert len(rows(tmp_path)) == 1
    assert (tmp_path / "emissions.csv.bak").read_text() == "a,b\n1,2\n"


def test_tasks_are_measured_apart(tmp_path: Path, station: Station) -> None:
    tracker = EmissionsTracker(save_to_file=False, force_carbon_intensity_g_co2e_kwh=100, station=station)
    tracker.start_task("load")
    spin(0.02)
    small = tracker.stop_task("load")
    tracker.start_task("train")
    spin(0.08)
    large = tracker.stop_task()
    assert small.energy_consumed is not None
    assert large.energy_consumed is not None
    assert 1.5 * small.energy_consumed < large.energy_consumed
    with pytest.raises(NegawattError, match="no task"):
        tracker.stop_task("load")
    assert not list(tmp_path.iterdir())


def test_the_decorator_with_and_without_parentheses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, station: Station
) -> None:
    monkeypatch.chdir(tmp_path)

    @track_emissions
    def plain(x: int) -> int:
        return x + 1

    @track_emissions(project_name="named", offline=True, country_iso_code="FRA", output_file="f.csv")
    def failing() -> None:
        raise ValueError("as it would without a tracker")

    assert plain(1) == 2
    with pytest.raises(ValueError, match="as it would"):
        failing()
    assert len(rows(tmp_path)) == 1
    assert rows(tmp_path, "f.csv")[0]["country_iso_code"] == "FRA"


@pytest.mark.parametrize(
    "options", [{"country_iso_code": "XYZ"}, {"pue": 0.5}, {"wue": -1}, {"on_csv_write": "replace"}]
)
def test_wrong_options_get_a_sentence(options: dict[str, object]) -> None:
    with pytest.raises(NegawattError, match=r"expected|no yearly intensity"):
        EmissionsTracker(**options)  # type: ignore[arg-type]


def test_offline_needs_a_country() -> None:
    with pytest.raises(NegawattError, match="country_iso_code"):
        track_emissions(offline=True)


def test_a_file_that_cannot_be_written_gets_a_sentence(tmp_path: Path, station: Station) -> None:
    (tmp_path / "file").write_text("")
    tracker = EmissionsTracker(output_dir=tmp_path / "file", station=station)
    tracker.start()
    with pytest.raises(NegawattError, match="cannot"):
        tracker.stop()
