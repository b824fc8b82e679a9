"""Wall plugs that measure: Shelly (both generations) and Tasmota, over their own HTTP interfaces.

Power is integrated rather than the plugs' own energy totals used: those advance in steps of a
minute (Shelly) or of 3,600 J (Tasmota).
"""

from __future__ import annotations

from collections.abc import Mapping

from negawatt.errors import SensorError
from negawatt.meter.fetch import Server, field
from negawatt.meter.power import Power, PowerSource

_ACCURACY = 0.02
"""Of the metering chips that these plugs use; their makers state 1 to 2 %."""


def _wall(watts: float) -> Power:
    return Power(watts, accuracy=_ACCURACY, refresh_s=1.0, boundary="wall", limit_w=4000.0)


class ShellySource(PowerSource):
    """A Shelly plug: ``Switch.GetStatus`` of the second generation on, ``/meter/0`` of the first."""

    name = "shelly"
    polled_s = 1.0

    def __init__(self, server: Server, component: str = "wall/shelly") -> None:
        self.server, self.component = server, component
        self._first_generation: bool | None = None

    def read_power(self) -> Mapping[str, Power]:
        if self._first_generation is None:
            about = self.server.get("/shelly")
            self._first_generation = isinstance(about, dict) and about.get("gen", 1) == 1
        if self._first_generation:
            watts = field(self.server.get("/meter/0"), "power", source=self.server.url)
        else:
            watts = field(self.server.get("/rpc/Switch.GetStatus?id=0"), "apower", source=self.server.url)
        return {self.component: _wall(watts)}


class TasmotaSource(PowerSource):
    """A plug with Tasmota's firmware: the ENERGY part of its sensor status."""

    name = "tasmota"
    polled_s = 1.0

    def __init__(self, server: Server, component: str = "wall/tasmota") -> None:
        self.server, self.component = server, component

    def read_power(self) -> Mapping[str, Power]:
        answer = self.server.get("/cm?cmnd=Status%2010")
        if isinstance(answer, dict) and "WARNING" in answer:
            raise SensorError(f"{self.server.url}: {answer['WARNING']}")
        watts = field(answer, "StatusSNS", "ENERGY", "Power", source=self.server.url)
        return {self.component: _wall(watts)}
