"""Apple silicon, by the text that ``powermetrics`` prints.

Not yet run on that hardware: tested on text laid out as the tool prints it. It needs root, and
samples the processor's own power; the display and the rest of the machine are not in it.
"""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import IO

from negawatt.errors import SensorError
from negawatt.meter.power import Power, PowerSource
from negawatt.meter.sensor import SensorAbsent, SensorDenied

COMMAND = ("sudo", "-n", "powermetrics", "--samplers", "cpu_power,gpu_power", "-i", "200")
_LINE = re.compile(r"^(CPU|GPU|ANE|DRAM) Power:\s+(\d+(?:\.\d+)?)\s*(mW|W)\s*$")
_COMPONENTS = {"CPU": "cpu/0", "GPU": "gpu/0", "ANE": "npu/0", "DRAM": "dram/0"}
_FIRST_SAMPLE_S = 5.0


def parse(line: str) -> tuple[str, float] | None:
    """Component and watts of one line of the tool's output; None for all other lines.

    ``Combined Power`` and ``Package Power`` are sums of the others and not components.
    """
    found = _LINE.match(line.strip())
    if found is None:
        return None
    part, value, unit = found.groups()
    return _COMPONENTS[part], float(value) * (1e-3 if unit == "mW" else 1.0)


class PowermetricsSource(PowerSource):
    """Processor, graphics, neural engine and memory, from a running ``powermetrics``.

    Args:
        command: what to run; it must print samples on standard output until it is ended.
    """

    name = "powermetrics"
    polled_s = 0.2

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self.command = command
        self._process: subprocess.Popen[str] | None = None
        self._watts: dict[str, float] = {}
        self._sampled = threading.Event()

    def read_power(self) -> Mapping[str, Power]:
        if self._process is None:
            self._start()
        assert self._process is not None
        if not self._sampled.wait(_FIRST_SAMPLE_S) or self._process.poll() is not None:
            raise self._failure()
        return {
            name: Power(watts, accuracy=0.1, refresh_s=0.2, limit_w=500.0)
            for name, watts in self._watts.items()
        }

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()
            self._sampled.clear()
            self._watts = {}

    def _start(self) -> None:
        try:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        except OSError as exc:
            raise SensorAbsent(f"{self.command[0]} cannot be run: {exc.strerror}") from exc
        assert self._process.stdout is not None
        threading.Thread(
            target=self._follow, args=(self._process.stdout,), name="negawatt-powermetrics", daemon=True
        ).start()

    def _follow(self, lines: IO[str]) -> None:
        for line in lines:
            if sample := parse(line):
                self._watts = {**self._watts, sample[0]: sample[1]}
                self._sampled.set()
        self._sampled.set()  # it ended: whoever waits finds out why

    def _failure(self) -> SensorError:
        assert self._process is not None
        if self._process.poll() is None:
            self.close()
            return SensorError(f"powermetrics printed no sample within {_FIRST_SAMPLE_S:g} s")
        assert self._process.stderr is not None
        said = self._process.stderr.read().strip().splitlines()
        self.close()
        why = said[-1] if said else "it ended"
        if "password" in why or "superuser" in why:
            return SensorDenied(
                f"powermetrics needs root: {why}", remedy="sudo negawatt …, or allow it in sudoers"
            )
        return SensorError(f"powermetrics gives no power: {why}")
