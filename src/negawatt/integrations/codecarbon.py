"""CodeCarbon's interface on this meter, for those who switch: change the import and nothing else.

`EmissionsTracker` asks no server where it is: without a country (or an intensity) emissions stay
unknown, and energy is measured all the same.
"""

from __future__ import annotations

import functools
import logging
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from negawatt.carbon import Factor, countries
from negawatt.errors import UsageError
from negawatt.integrations.codecarbon_csv import EmissionsData, Run, checked, write
from negawatt.meter import ProcessMeter, Station

_log = logging.getLogger("negawatt")
F = TypeVar("F", bound=Callable[..., Any])


class EmissionsTracker:
    """Measures this process and its children, and adds a row to ``emissions.csv`` at the end.

    Args:
        project_name, experiment_id: columns of the file.
        output_dir, output_file, save_to_file: where the file is, and whether one is written.
        on_csv_write: ``append`` a row, or ``update`` the run's own.
        country_iso_code: country of the electricity, by code; see `negawatt.carbon.yearly`.
        force_carbon_intensity_g_co2e_kwh: grams a kWh, in place of a country's.
        pue, wue: of the site.
        station: the sensors to use; by default all that can be trusted here.
        others: CodeCarbon's other options; those have no effect here, and one warning says so.

    Raises:
        UsageError: a value is out of range, or the country is not known.
    """

    def __init__(
        self,
        project_name: str = "codecarbon",
        *,
        experiment_id: str = "",
        output_dir: str | Path = ".",
        output_file: str = "emissions.csv",
        save_to_file: bool = True,
        on_csv_write: str = "append",
        country_iso_code: str | None = None,
        force_carbon_intensity_g_co2e_kwh: float | None = None,
        pue: float = 1.0,
        wue: float = 0.0,
        station: Station | None = None,
        **others: Any,
    ) -> None:
        checked(pue, wue)
        if on_csv_write not in ("append", "update"):
            raise UsageError(f"expected on_csv_write to be append or update, not {on_csv_write!r}")
        if others:
            _log.warning("no effect here: %s", ", ".join(sorted(others)))
        country = None
        if country_iso_code is not None:
            code = country_iso_code.upper()
            country = next((c for c in countries() if code in (c.alpha_3, c.alpha_2)), None)
            if country is None:
                raise UsageError(
                    f"no yearly intensity is known for {country_iso_code!r}; give a code such as DEU"
                )
        given = force_carbon_intensity_g_co2e_kwh
        intensity = country.intensity if country else None
        if given is not None:
            intensity = Factor.exact(given, "gCO2e/kWh", "as given")
        if intensity is None:
            _log.warning("emissions stay unknown: give country_iso_code or force_carbon_intensity_g_co2e_kwh")
        self.run_id = str(uuid.uuid4())
        self._run = Run(project_name, self.run_id, experiment_id, intensity, country, pue, wue)
        self._target = Path(output_dir) / output_file if save_to_file else None
        self._update = on_csv_write == "update"
        self._flushed = False
        self._meter, self._station = ProcessMeter(os.getpid(), station), station
        self._running = False
        self._tasks: dict[str, ProcessMeter] = {}
        self.final_emissions: float | None = None
        self.final_emissions_data: EmissionsData | None = None

    def start(self) -> None:
        """Begin measuring."""
        self._meter.start()
        self._running = True

    def flush(self) -> float | None:
        """Write what was spent so far and go on; kg of CO₂ equivalent, or None where they are unknown."""
        return self._out(self._run.data(self._meter.read())).emissions

    def stop(self) -> float | None:
        """End and write the row; kg of CO₂ equivalent, or None where they are unknown."""
        if self._running:
            self._running = False
            self.final_emissions_data = self._out(self._run.data(self._meter.stop()))
            self.final_emissions = self.final_emissions_data.emissions
        return self.final_emissions

    def start_task(self, task_name: str | None = None) -> str:
        """Begin a part of the work, beside whatever else is measured; returns its name."""
        name = task_name or str(uuid.uuid4())
        if name in self._tasks:
            raise UsageError(f"task {name!r} is already running")
        self._tasks[name] = ProcessMeter(os.getpid(), self._station)
        self._tasks[name].start()
        return name

    def stop_task(self, task_name: str | None = None) -> EmissionsData:
        """End a part of the work, the latest begun if not named; what it spent."""
        name = task_name or next(reversed(self._tasks), None)
        if name is None or name not in self._tasks:
            raise UsageError(f"no task {name or ''} is running; start_task begins one")
        return self._run.data(self._tasks.pop(name).stop())

    def _out(self, data: EmissionsData) -> EmissionsData:
        if self._target is not None:
            # A run that was flushed has a row already; appending another would count it twice.
            write(data, self._target, update=self._update or self._flushed)
            self._flushed = True
        return data

    def __enter__(self) -> EmissionsTracker:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class OfflineEmissionsTracker(EmissionsTracker):
    """The same, with the country required, as CodeCarbon has it."""

    def __init__(self, *args: Any, country_iso_code: str, **options: Any) -> None:
        super().__init__(*args, country_iso_code=country_iso_code, **options)


def track_emissions(fn: F | None = None, *, offline: bool = False, **options: Any) -> Any:
    """Decorator: a tracker of its own around every call.

    Args:
        fn: the function, where the decorator is used without parentheses.
        offline: the country is required.
        options: of `EmissionsTracker`.
    """
    if offline and "country_iso_code" not in options:
        raise UsageError("offline=True needs country_iso_code, such as DEU")

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def tracked(*args: Any, **kwargs: Any) -> Any:
            with EmissionsTracker(**options):
                return function(*args, **kwargs)

        return tracked  # type: ignore[return-value]

    return decorate(fn) if fn is not None else decorate
