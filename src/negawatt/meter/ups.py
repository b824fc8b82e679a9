"""An uninterruptible power supply, through the server of Network UPS Tools (RFC 9271, TCP port 3493)."""

from __future__ import annotations

import shlex
import socket
import time
from collections.abc import Mapping

from negawatt.errors import SensorError
from negawatt.meter.power import Power, PowerSource
from negawatt.meter.sensor import SensorAbsent, SensorDenied

PORT = 3493


class UpsSource(PowerSource):
    """Power at the output of a UPS, as ``wall/ups``.

    Uses ``ups.realpower`` where the UPS has it, else ``ups.load`` in percent of
    ``ups.realpower.nominal``, which only tells whole percents.

    Args:
        host, port: where ``upsd`` listens.
        ups: the name it has there.
        deadline_s: seconds that all questions of one reading may take together.
    """

    name = "nut"
    polled_s = 2.0

    def __init__(
        self, host: str, ups: str, port: int = PORT, *, component: str = "wall/ups", deadline_s: float = 3.0
    ) -> None:
        self.host, self.ups, self.port = host, ups, port
        self.component, self.deadline_s = component, deadline_s

    def read_power(self) -> Mapping[str, Power]:
        until_s = time.monotonic() + self.deadline_s
        try:
            with socket.create_connection((self.host, self.port), self.deadline_s) as connection:
                conversation = _Conversation(connection, self.ups, until_s)
                watts = conversation.variable("ups.realpower")
                if watts is not None:
                    return {self.component: Power(watts, 0.05, 2.0, "wall", limit_w=1e5)}
                load = conversation.variable("ups.load")
                nominal_w = conversation.variable("ups.realpower.nominal")
        except TimeoutError as exc:
            raise SensorError(
                f"upsd at {self.host}:{self.port}: no answer within {self.deadline_s:g} s"
            ) from exc
        except OSError as exc:
            raise SensorError(f"upsd at {self.host}:{self.port}: {exc.strerror or exc}") from exc
        if load is None or not nominal_w:
            raise SensorAbsent(f"the UPS {self.ups} tells neither its power nor its load")
        watts = load / 100 * nominal_w
        accuracy = min(1.0, 0.05 + 0.5 / load) if load else 1.0  # half of a percent of the nominal power
        return {self.component: Power(watts, accuracy, 2.0, "wall", limit_w=1e5)}


class _Conversation:
    """Questions and answers over one connection, within one deadline."""

    def __init__(self, connection: socket.socket, ups: str, until_s: float) -> None:
        self._connection, self._ups, self._until_s = connection, ups, until_s
        self._buffer = b""

    def variable(self, name: str) -> float | None:
        """Value of a variable; None if this UPS has none of that name."""
        self._connection.sendall(f"GET VAR {self._ups} {name}\n".encode())
        line = self._line()
        if line.startswith("ERR "):
            code = line.split()[1]
            if code == "VAR-NOT-SUPPORTED":
                return None
            if code == "ACCESS-DENIED":
                raise SensorDenied(
                    f"upsd denies {self._ups}", remedy="allow this host in upsd.conf and upsd.users"
                )
            raise SensorError(f"upsd says {code} about the UPS {self._ups}")
        try:
            kind, ups, variable, value = shlex.split(line)
            if (kind, ups, variable) != ("VAR", self._ups, name):
                raise ValueError(line)
            return float(value)
        except ValueError as exc:
            raise SensorError(f"this is not how upsd answers: {line[:60]!r}") from exc

    def _line(self) -> str:
        while b"\n" not in self._buffer:
            if len(self._buffer) > 65536:
                raise SensorError("upsd sends a line without an end")
            self._connection.settimeout(max(0.001, self._until_s - time.monotonic()))
            received = self._connection.recv(4096)
            if not received:
                raise SensorError("upsd closed the connection")
            self._buffer += received
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line.decode("utf-8", "replace")
