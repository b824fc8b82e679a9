"""`SensorContract`: what every `negawatt.meter.Sensor` must do, as a test suite to subclass.

::

    class TestMySensor(SensorContract):
        @pytest.fixture
        def bench(self, tmp_path):
            source = MySource(tmp_path)
            return SensorBench(MySensor(source), spend=source.add_joules, fail=source.unplug)
"""

from __future__ import annotations

import math
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from negawatt.errors import SensorError
from negawatt.meter import Reading, Sensor
from negawatt.meter.accumulate import advance_j


@dataclass(frozen=True)
class SensorBench:
    """A sensor with the means to drive what it reads.

    Attributes:
        sensor: the sensor under test; it has a working source.
        spend: makes this many joules flow through every component the sensor shows; may take time.
        fail: breaks the source (unplugs, hangs, corrupts), so that the next read cannot succeed.
    """

    sensor: Sensor
    spend: Callable[[float], None]
    fail: Callable[[], None]


class SensorContract(ABC):
    """Subclass it and supply the fixture ``bench``, a `SensorBench`."""

    joules = 40.0
    """How much the suite makes flow; well above the sensor's resolution."""

    @pytest.fixture
    @abstractmethod
    def bench(self) -> SensorBench:
        """The sensor to test, with its source."""

    def test_has_a_name(self, bench: SensorBench) -> None:
        assert re.fullmatch(r"[a-z][a-z0-9 _-]*", bench.sensor.name)

    def test_reads_at_least_one_component(self, bench: SensorBench) -> None:
        counters = bench.sensor.read().counters
        assert counters
        for component in counters:
            assert re.fullmatch(r"[a-z]+(/[\w.:-]+)*", component), component

    def test_counters_are_well_formed(self, bench: SensorBench) -> None:
        counters = bench.sensor.read().counters
        for component, counter in counters.items():
            numbers = (counter.energy_j, counter.resolution_j, counter.refresh_s, counter.limit_w)
            assert all(math.isfinite(n) and n >= 0 for n in numbers), component
            assert counter.range_j is None or counter.energy_j <= counter.range_j
            assert 0 <= counter.band[0] <= 1 <= counter.band[1]
            assert counter.part_of is None or counter.part_of in counters
            assert counter.part_of != component

    def test_time_is_that_of_the_read(self, bench: SensorBench) -> None:
        before = time.monotonic()
        reading = bench.sensor.read()
        assert before <= reading.at_s <= time.monotonic()

    def test_shows_the_same_components_every_time(self, bench: SensorBench) -> None:
        assert bench.sensor.read().counters.keys() == bench.sensor.read().counters.keys()

    def test_counts_the_joules_that_flow(self, bench: SensorBench) -> None:
        before = bench.sensor.read()
        bench.spend(self.joules)
        after = bench.sensor.read()
        for component in before.counters:
            self._assert_advanced(component, before, after)

    def _assert_advanced(self, component: str, before: Reading, after: Reading) -> None:
        counter = after.counters[component]
        elapsed_s = max(after.at_s - before.at_s, self.joules / counter.limit_w)
        step_j = advance_j(before.counters[component], counter, elapsed_s)
        assert step_j is not None
        low, high = counter.band
        slack_j = 2 * counter.resolution_j + 1e-6
        assert step_j * low - slack_j <= self.joules <= step_j * high + slack_j

    def test_a_broken_source_raises_and_is_never_zero(self, bench: SensorBench) -> None:
        bench.sensor.read()
        bench.fail()
        with pytest.raises(SensorError) as caught:
            bench.sensor.read()
        assert len(str(caught.value)) > 10

    def test_reads_again_after_close(self, bench: SensorBench) -> None:
        names = bench.sensor.read().counters.keys()
        bench.sensor.close()
        assert bench.sensor.read().counters.keys() == names
        bench.sensor.close()
        bench.sensor.close()
