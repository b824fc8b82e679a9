"""A double of libpapi: the calls that `negawatt.meter.papi` makes, and no hardware behind them.

It keeps to what PAPI 7 documents and does: counts since ``PAPI_start``, an energy counter told whole
until it has moved once, constants told as they are, errors as negative numbers. Values are written
through the same ctypes objects that the library would get.
"""

from __future__ import annotations

import ctypes
from typing import Any

_ESYS, _EINVAL, _ENOEVNT, _ENOCMP = -3, -1, -7, -17


class PapiDouble:
    """Stands in for the loaded library. Drive it with `values`, `spend` and `fault`.

    Attributes:
        values: what each event's source shows now, by full name.
        descriptions: the text that goes with an event, where there is one.
        fault: an error code that every following read returns, or None.
    """

    def __init__(self, values: dict[str, int], descriptions: dict[str, str] | None = None) -> None:
        self.values = values
        self.descriptions = descriptions or {}
        self.fault: int | None = None
        self._started: dict[int, dict[str, int]] = {}
        self._sets: dict[int, list[str]] = {}
        self._ready = False
        self.PAPI_strerror = _Strerror()

    @classmethod
    def server(cls) -> PapiDouble:
        """One package with cores and memory, and two GPUs."""
        values, descriptions = {}, {}
        for n, (zone, name) in enumerate(
            [("ZONE0", "package-0"), ("ZONE0_SUBZONE0", "core"), ("ZONE0_SUBZONE1", "dram")]
        ):
            values[f"powercap:::ENERGY_UJ:{zone}"] = (n + 1) * 1_000_000
            values[f"powercap:::MAX_ENERGY_RANGE_UJ:{zone}"] = 262_143_328_850
            values[f"powercap:::NAME:{zone}"] = 0
            descriptions[f"powercap:::NAME:{zone}"] = f"{name}\n"
        for n in (0, 1):
            values[f"nvml:::NVIDIA_A2:device_{n}:power"] = 40_000
            values[f"nvml:::NVIDIA_A2:device_{n}:power_management_limit"] = 60_000
        return cls(values, descriptions)

    def spend(self, joules: float) -> None:
        """Let this many joules flow through every zone."""
        for name in self.values:
            if ":::ENERGY_UJ:" in name:
                self.values[name] += round(joules * 1e6)

    # The names below are PAPI's own.

    def PAPI_is_initialized(self) -> int:
        return int(self._ready)

    def PAPI_library_init(self, version: int) -> int:
        self._ready = True
        return version or 7 << 24

    def PAPI_get_component_index(self, name: bytes) -> int:
        components = self._components()
        return components.index(name.decode()) if name.decode() in components else _ENOCMP

    def PAPI_enum_cmp_event(self, code: Any, modifier: int, component: int) -> int:
        prefix = f"{self._components()[component]}:::"
        codes = [n | 0x40000000 for n, name in enumerate(self.values) if name.startswith(prefix)]
        later = codes if modifier == 1 else [c for c in codes if c > code._obj.value]
        if not later:
            return _ENOEVNT
        code._obj.value = later[0]
        return 0

    def PAPI_event_code_to_name(self, code: Any, out: Any) -> int:
        out.value = self._name(code.value).encode()
        return 0

    def PAPI_get_event_info(self, code: int, info: Any) -> int:
        text = self.descriptions.get(self._name(code), "").encode()
        ctypes.memmove(ctypes.byref(info, 4 + 1024 + 64), text + b"\0", len(text) + 1)
        return 0

    def PAPI_create_eventset(self, number: Any) -> int:
        number._obj.value = len(self._sets)
        self._sets[number._obj.value] = []
        return 0

    def PAPI_add_named_event(self, number: int, name: bytes) -> int:
        if name.decode() not in self.values:
            return _ENOEVNT
        self._sets[number].append(name.decode())
        return 0

    def PAPI_start(self, number: int) -> int:
        self._started[number] = dict(self.values)
        return 0

    def PAPI_read(self, number: int, values: Any) -> int:
        if self.fault is not None:
            return self.fault
        if number not in self._started:
            return _EINVAL
        for n, name in enumerate(self._sets[number]):
            now, then = self.values[name], self._started[number][name]
            values[n] = now - then if ":::ENERGY_UJ:" in name and now > then else now
        return 0

    def PAPI_stop(self, number: int, values: Any) -> int:
        return 0 if self._started.pop(number, None) is not None else _EINVAL

    def PAPI_cleanup_eventset(self, number: int) -> int:
        self._sets[number] = []
        return 0

    def PAPI_destroy_eventset(self, number: Any) -> int:
        number._obj.value = -1
        return 0

    def _components(self) -> list[str]:
        return sorted({name.partition(":::")[0] for name in self.values})

    def _name(self, code: int) -> str:
        return list(self.values)[code & 0x3FFFFFFF]


class _Strerror:
    """A function with a `restype`, as ctypes gives them."""

    restype: Any = None

    def __call__(self, code: int) -> bytes:
        return {_ESYS: b"A System/C library call failed"}.get(code, b"Unknown error")
