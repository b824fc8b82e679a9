"""Sensors, windows and measurements: joules with a provenance and an interval, on any machine."""

from negawatt.meter.machine import fingerprint
from negawatt.meter.markers import marked
from negawatt.meter.measurement import Measurement, Stage
from negawatt.meter.meter import Meter, ProcessMeter, energy_of_cpu_time
from negawatt.meter.metered import metered
from negawatt.meter.power import Integrated, Power, PowerSource
from negawatt.meter.sensor import (
    Counter,
    Reading,
    Sensor,
    SensorAbsent,
    SensorDead,
    SensorDenied,
    SensorStatus,
    probe,
)
from negawatt.meter.station import Station, sensors, station

__all__ = [
    "Counter",
    "Integrated",
    "Measurement",
    "Meter",
    "Power",
    "PowerSource",
    "ProcessMeter",
    "Reading",
    "Sensor",
    "SensorAbsent",
    "SensorDead",
    "SensorDenied",
    "SensorStatus",
    "Stage",
    "Station",
    "energy_of_cpu_time",
    "fingerprint",
    "marked",
    "metered",
    "probe",
    "sensors",
    "station",
]
