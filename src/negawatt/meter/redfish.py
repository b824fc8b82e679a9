"""A server's own power meter, through its management controller (DMTF Redfish, DSP0266).

Reads ``EnvironmentMetrics`` (``PowerWatts.Reading``) of a chassis and, where there is none, the
older ``Power`` resource (``PowerControl[0].PowerConsumedWatts``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from negawatt.errors import SensorError
from negawatt.meter.fetch import Server, field
from negawatt.meter.power import Power, PowerSource
from negawatt.meter.sensor import SensorAbsent


class RedfishSource(PowerSource):
    """Power of every chassis that tells it, as ``host/ID``.

    A chassis that another one contains (``Links.ContainedBy``) is part of it.
    """

    name = "redfish"
    polled_s = 2.0

    def __init__(self, server: Server) -> None:
        self.server = server
        self._found: dict[str, tuple[str, tuple[str | int, ...], str | None]] | None = None

    def read_power(self) -> Mapping[str, Power]:
        if self._found is None:
            self._found = self._discover()
        return {
            component: Power(
                field(self.server.get(path), *keys, source=self.server.url),
                accuracy=0.05,
                refresh_s=2.0,
                boundary="host",
                part_of=whole,
                limit_w=1e5,
            )
            for component, (path, keys, whole) in self._found.items()
        }

    def _discover(self) -> dict[str, tuple[str, tuple[str | int, ...], str | None]]:
        """Component to the resource that tells its power, the number in it, and what contains it."""
        found: dict[str, tuple[str, tuple[str | int, ...], str | None]] = {}
        inside: dict[str, str | None] = {}
        try:
            members = [m["@odata.id"] for m in self.server.get("/redfish/v1/Chassis")["Members"]]
        except (KeyError, TypeError) as exc:
            raise SensorError(f"{self.server.url}: this is not how Redfish lists its chassis") from exc
        for path in members:
            chassis = self.server.get(str(path))
            if not isinstance(chassis, dict):
                raise SensorError(
                    f"{self.server.url}: {str(path)[:40]} is not how Redfish tells of a chassis"
                )
            component = f"host/{chassis.get('Id', str(path).rsplit('/', 1)[-1])}"
            inside[component] = _container(chassis)
            if place := self._meter(chassis):
                found[component] = (*place, None)
        if not found:
            raise SensorAbsent(f"no chassis at {self.server.url} tells its power")
        return {
            name: (path, keys, inside[name] if inside[name] in found else None)
            for name, (path, keys, _) in found.items()
        }

    def _meter(self, chassis: Mapping[str, Any]) -> tuple[str, tuple[str | int, ...]] | None:
        choices: tuple[tuple[str, tuple[str | int, ...]], ...] = (
            ("EnvironmentMetrics", ("PowerWatts", "Reading")),
            ("Power", ("PowerControl", 0, "PowerConsumedWatts")),
        )
        for resource, keys in choices:
            link = chassis.get(resource)
            if not isinstance(link, dict) or "@odata.id" not in link:
                continue
            path = str(link["@odata.id"])
            try:
                field(self.server.get(path), *keys, source=self.server.url)
            except SensorError:
                continue  # the resource is there and tells no power; the other one may
            return path, keys
        return None


def _container(chassis: Mapping[str, Any]) -> str | None:
    links = chassis.get("Links")
    outer = links.get("ContainedBy") if isinstance(links, dict) else None
    path = outer.get("@odata.id") if isinstance(outer, dict) else None
    return f"host/{str(path).rsplit('/', 1)[-1]}" if path else None
