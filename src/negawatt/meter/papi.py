"""PAPI's powercap and NVML components, through libpapi where it is installed.

They tell what `negawatt.meter.rapl` and `negawatt.meter.nvml` read directly, and libpapi starts CUDA
in the process that initialises it, so they are read only when named: ``papi:powercap``, ``papi:nvml``.

Follows PAPI's low-level interface (https://icl.utk.edu/papi). The library itself is run here; its
powercap and NVML components are not compiled into Debian's and not yet run on their hardware.
"""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from negawatt.errors import SensorError
from negawatt.meter.power import Power, PowerSource
from negawatt.meter.rapl import REFRESH_S, RESOLUTION_J, zone_component
from negawatt.meter.sensor import Counter, Reading, Sensor, SensorAbsent, SensorDenied

_VERSIONS = ((7, 3), (7, 2), (7, 1), (7, 0), (6, 0), (5, 7))
_OK, _EPERM, _ENOCMP = 0, -15, -17
_NATIVE, _ALL, _FIRST = 0x40000000, 0, 1  # codes of native events, and how to enumerate them
_NAME_BYTES = 1024
_DESCRIPTION_AT = 4 + 1024 + 64  # bytes before `long_descr` in PAPI_event_info_t
_INFO_BYTES = 65536  # more than any version's PAPI_event_info_t


class Papi:
    """The low-level interface: names of events, and sets of them that count.

    Args:
        library: the loaded library, or a double of it; None looks for libpapi.

    Raises:
        SensorAbsent: there is no libpapi, or it does not start.
    """

    def __init__(self, library: Any = None) -> None:
        version = 0
        for version_, name in [((0, 0), "")] if library is not None else _names():
            try:
                self._library = library if library is not None else ctypes.CDLL(name)
            except OSError:
                continue
            version = version_[0] << 24 | version_[1] << 16
            break
        else:
            raise SensorAbsent(
                "libpapi is not installed", remedy="on Debian: sudo apt-get install papi-tools"
            )
        if not self._library.PAPI_is_initialized():
            got = self._library.PAPI_library_init(version)
            if got > 0 and got != version:  # it tells its own version to those who asked for another
                got = self._library.PAPI_library_init(got & -0x10000)
            if got < 0:
                raise SensorAbsent(f"libpapi does not start: {self._error(got)}")

    def events(self, component: str) -> dict[str, int]:
        """Codes of a component's events by name, without the component's own.

        Raises:
            SensorAbsent: libpapi was built without the component, or it does not work here.
        """
        index = self._library.PAPI_get_component_index(component.encode())
        code = ctypes.c_int(_NATIVE)
        if index < 0 or self._library.PAPI_enum_cmp_event(ctypes.byref(code), _FIRST, index) != _OK:
            why = "was built without it" if index == _ENOCMP else "finds nothing for it to read"
            raise SensorAbsent(f"no {component} component: this libpapi {why}")
        found = {}
        text = ctypes.create_string_buffer(_NAME_BYTES)
        while True:
            self._check(self._library.PAPI_event_code_to_name(code, text))
            found[text.value.decode("utf-8", "replace").rpartition(":::")[2]] = code.value
            if self._library.PAPI_enum_cmp_event(ctypes.byref(code), _ALL, index) != _OK:
                return found

    def description(self, code: int) -> str:
        """What the library says of an event."""
        info = ctypes.create_string_buffer(_INFO_BYTES)
        self._check(self._library.PAPI_get_event_info(code, info))
        return info.raw[_DESCRIPTION_AT:].split(b"\0", 1)[0].decode("utf-8", "replace").strip()

    def count(self, names: Sequence[str]) -> EventSet:
        """Start to count events, by their full names."""
        found = ctypes.c_int(-1)
        self._check(self._library.PAPI_create_eventset(ctypes.byref(found)))
        for name in names:
            self._check(self._library.PAPI_add_named_event(found.value, name.encode()))
        self._check(self._library.PAPI_start(found.value))
        return EventSet(self, found.value, len(names))

    def read(self, event_set: int, size: int) -> list[int]:
        values = (ctypes.c_longlong * size)()
        self._check(self._library.PAPI_read(event_set, values))
        return list(values)

    def stop(self, event_set: int, size: int) -> None:
        values = (ctypes.c_longlong * size)()
        held = ctypes.c_int(event_set)
        self._library.PAPI_stop(event_set, values)
        self._library.PAPI_cleanup_eventset(event_set)
        self._library.PAPI_destroy_eventset(ctypes.byref(held))

    def _check(self, code: int) -> None:
        if code == _EPERM:
            raise SensorDenied(f"PAPI: {self._error(code)}", remedy="run as root")
        if code < _OK:
            raise SensorError(f"PAPI: {self._error(code)}")

    def _error(self, code: int) -> str:
        describe = self._library.PAPI_strerror
        describe.restype = ctypes.c_char_p
        text = describe(code)
        return text.decode("utf-8", "replace") if text else f"error {code}"


def _names() -> list[tuple[tuple[int, int], str]]:
    exact = [(version, f"libpapi.so.{version[0]}.{version[1]}") for version in _VERSIONS]
    return [*exact, (_VERSIONS[0], "libpapi.so")]


class EventSet:
    """Events that are being counted together."""

    def __init__(self, papi: Papi, number: int, size: int) -> None:
        self._papi, self._number, self._size = papi, number, size

    def read(self) -> list[int]:
        """Counts since the start, in the order of the names.

        Raises:
            SensorError: the library refuses.
        """
        return self._papi.read(self._number, self._size)

    def stop(self) -> None:
        self._papi.stop(self._number, self._size)


class PapiPowercapSensor(Sensor):
    """RAPL by PAPI's powercap component; components are named as `RaplSensor` names them.

    Args:
        library: the loaded library, or a double of it; None looks for libpapi on first use.
    """

    name = "papi powercap"

    def __init__(self, library: Any = None) -> None:
        self._library = library
        self._zones: list[tuple[str, str | None]] = []  # component, and the one it is part of
        self._set: EventSet | None = None

    def read(self) -> Reading:
        if self._set is None:
            self._open()
        assert self._set is not None
        start_s = time.monotonic()
        values = self._set.read()
        counters = {}
        for n, (component, part_of) in enumerate(self._zones):
            counters[component] = Counter(
                energy_j=values[2 * n] * 1e-6,
                range_j=values[2 * n + 1] * 1e-6,
                resolution_j=RESOLUTION_J,
                refresh_s=REFRESH_S,
                boundary="host" if component == "host/psys" else "chip",
                part_of=part_of,
            )
        return Reading((start_s + time.monotonic()) / 2, counters)

    def close(self) -> None:
        if self._set is not None:
            self._set.stop()
            self._set = None

    def _open(self) -> None:
        papi = Papi(self._library)
        events = papi.events("powercap")
        zones = sorted(m[1] for e in events if (m := re.fullmatch(r"ENERGY_UJ:(ZONE\d+(?:_SUBZONE\d+)?)", e)))
        names: dict[str, str] = {}
        self._zones = []
        for zone in zones:
            label = papi.description(events[f"NAME:{zone}"]) if f"NAME:{zone}" in events else "package-0"
            zone_id = "intel-rapl:" + zone.removeprefix("ZONE").replace("_SUBZONE", ":")
            component, part_of = zone_component(label, zone_id, names)
            names[zone_id] = component
            self._zones.append((component, part_of))
        if not zones:
            raise SensorAbsent("PAPI's powercap component shows no zones")
        wanted = [
            f"powercap:::{what}:{zone}" for zone in zones for what in ("ENERGY_UJ", "MAX_ENERGY_RANGE_UJ")
        ]
        self._set = papi.count(wanted)
        # Until a counter has moved once since the start, PAPI tells it whole instead of the difference.
        time.sleep(5 * REFRESH_S)


class PapiNvmlSource(PowerSource):
    """Power of NVIDIA GPUs by PAPI's NVML component, as ``gpu/N``: within 5 W of the whole board."""

    name = "papi nvml"
    polled_s = 0.1

    def __init__(self, library: Any = None) -> None:
        self._library = library
        self._gpus: list[str] = []
        self._set: EventSet | None = None

    def read_power(self) -> Mapping[str, Power]:
        if self._set is None:
            papi = Papi(self._library)
            found = [e for e in papi.events("nvml") if re.search(r":device_\d+:power$", e)]
            if not found:
                raise SensorAbsent("PAPI's NVML component tells no GPU's power")
            self._gpus = [f"gpu/{e.split(':device_')[1].split(':')[0]}" for e in found]
            self._set = papi.count([f"nvml:::{e}" for e in found])
        return {
            gpu: Power(milliwatts * 1e-3, accuracy=0.1, refresh_s=1.0, limit_w=3000.0)
            for gpu, milliwatts in zip(self._gpus, self._set.read(), strict=True)
        }

    def close(self) -> None:
        if self._set is not None:
            self._set.stop()
            self._set = None
