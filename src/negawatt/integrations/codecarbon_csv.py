"""`EmissionsData`: a row of CodeCarbon's ``emissions.csv``, column by column as its version 3.3 writes it."""

from __future__ import annotations

import csv
import io
import os
import platform
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

from negawatt import __version__
from negawatt.carbon import KWH_J, Country, Factor
from negawatt.energy import Energy
from negawatt.errors import NegawattError, UsageError
from negawatt.home import written_beside
from negawatt.meter import Measurement, fingerprint


@dataclass
class EmissionsData:
    """One run. Energies are in kWh, emissions in kg of CO₂ equivalent, water in litres, powers in W.

    What is not known is None, and an empty field in the file: CodeCarbon's own zeros would claim that
    nothing was used.
    """

    timestamp: str
    project_name: str
    run_id: str
    experiment_id: str
    duration: float
    emissions: float | None
    emissions_rate: float | None
    cpu_power: float | None
    gpu_power: float | None
    ram_power: float | None
    cpu_energy: float | None
    gpu_energy: float | None
    ram_energy: float | None
    energy_consumed: float | None
    water_consumed: float | None
    country_name: str | None
    country_iso_code: str | None
    region: str | None
    cloud_provider: str
    cloud_region: str
    os: str
    python_version: str
    codecarbon_version: str
    cpu_count: int | None
    cpu_model: str
    gpu_count: int | None
    gpu_model: str | None
    longitude: float | None
    latitude: float | None
    ram_total_size: float
    tracking_mode: str
    cpu_utilization_percent: float | None
    gpu_utilization_percent: float | None
    ram_utilization_percent: float | None
    ram_used_gb: float | None
    on_cloud: str
    pue: float
    wue: float


COLUMNS = tuple(field.name for field in fields(EmissionsData))


@dataclass(frozen=True)
class Run:
    """What a tracker was told about the run.

    Attributes:
        intensity: grams of CO₂ equivalent a kWh; None where nobody said which country.
        country: where that is from, if it is a country's.
        pue, wue: of the site; litres a kWh.
    """

    project_name: str
    run_id: str
    experiment_id: str
    intensity: Factor | None
    country: Country | None
    pue: float
    wue: float

    def data(self, measured: Measurement) -> EmissionsData:
        """The row for what was measured so far."""
        seconds = measured.duration_s
        kwh = {
            part: _kwh(_of(measured, prefix), self.pue)
            for part, prefix in (("cpu", "cpu"), ("gpu", "gpu"), ("ram", "dram"))
        }
        energy = _kwh(measured.energy, self.pue)
        kg = energy * self.intensity.value / 1000 if energy is not None and self.intensity else None
        machine = fingerprint()
        power = {
            name: value * KWH_J / seconds if value is not None and seconds > 0 else None
            for name, value in kwh.items()
        }
        capacity_s = seconds * (os.cpu_count() or 1)
        return EmissionsData(
            timestamp=datetime.now().strftime("%Y-%m-%dT%H:%M:%S"),
            project_name=self.project_name,
            run_id=self.run_id,
            experiment_id=self.experiment_id,
            duration=seconds,
            emissions=kg,
            emissions_rate=kg / seconds if kg is not None and seconds > 0 else None,
            **{f"{name}_power": value for name, value in power.items()},
            **{f"{name}_energy": value for name, value in kwh.items()},
            energy_consumed=energy,
            water_consumed=energy * self.wue if energy is not None else None,
            country_name=self.country.name if self.country else None,
            country_iso_code=self.country.alpha_3 if self.country else None,
            region=None,
            cloud_provider="",
            cloud_region="",
            os=platform.platform(),
            python_version=platform.python_version(),
            codecarbon_version=f"negawatt {__version__}",
            cpu_count=os.cpu_count(),
            cpu_model=str(machine["cpu"]),
            gpu_count=sum(name.startswith("gpu/") for name in measured.components) or None,
            gpu_model=None,
            longitude=None,
            latitude=None,
            ram_total_size=int(machine["memory_bytes"]) / 1e9,
            tracking_mode="process",
            cpu_utilization_percent=100 * measured.cpu_s / capacity_s if capacity_s > 0 else None,
            gpu_utilization_percent=None,
            ram_utilization_percent=None,
            ram_used_gb=None,
            on_cloud="N",
            pue=self.pue,
            wue=self.wue,
        )


def write(row: EmissionsData, target: Path, *, update: bool) -> None:
    """Add a row to a file of CodeCarbon's, or of ours, in the file's own order of columns.

    Args:
        row: what to write.
        target: the file; a file with other columns is kept beside it as ``NAME.bak``, as CodeCarbon does.
        update: replace the row of the same run, if there is one.

    Raises:
        NegawattError: the file cannot be read or written.
    """
    try:
        before = target.read_text("utf-8") if target.exists() else ""
    except (OSError, UnicodeDecodeError) as exc:
        raise NegawattError(f"cannot read {target}: {exc}") from exc
    reader = csv.DictReader(io.StringIO(before))
    header = tuple(reader.fieldnames or ())
    same = sorted(header) == sorted(COLUMNS)
    rows = list(reader) if same else []
    if update:
        rows = [old for old in rows if old["run_id"] != row.run_id]
    out = io.StringIO()
    writer = csv.DictWriter(out, header if same else COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows([*rows, {k: "" if v is None else v for k, v in asdict(row).items()}])
    if header and not same:
        with written_beside(target.with_name(target.name + ".bak")) as temporary:
            temporary.write_text(before, "utf-8")
    with written_beside(target) as temporary:
        temporary.write_text(out.getvalue(), "utf-8")


def _of(measured: Measurement, kind: str) -> Energy | None:
    """Energy of all components of a kind; None where there is no such component."""
    parts = [e for name, e in measured.components.items() if name.split("/")[0] == kind]
    return Energy.total(parts) if parts else None


def _kwh(energy: Energy | None, pue: float) -> float | None:
    return None if energy is None or energy.value_j is None else energy.value_j * pue / KWH_J


def checked(pue: float, wue: float) -> None:
    """Raise `UsageError` unless a site can have these."""
    if not 1 <= pue < float("inf") or not 0 <= wue < float("inf"):
        raise UsageError(f"expected a PUE of at least 1 and a WUE of at least 0 l/kWh, not {pue} and {wue}")
