"""`by_function`: looks at a block of this process while it is measured; `Looked` is what it hands out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from negawatt.errors import UsageError
from negawatt.hotspots.hotspots import Hotspots
from negawatt.hotspots.sampler import Sampler
from negawatt.meter import Meter, Station


class Looked:
    """What a block is told to, and asked afterwards.

    Args:
        stage: enters a named stage for as long as its context lasts.
    """

    def __init__(self, stage: Callable[[str], AbstractContextManager[None]]) -> None:
        self._stage = stage
        self._hotspots: Hotspots | None = None

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Name a part of the block; parts may nest."""
        return self._stage(name)

    @property
    def hotspots(self) -> Hotspots:
        """What the block spent, and on what.

        Raises:
            UsageError: the block has not been left yet.
        """
        if self._hotspots is None:
            raise UsageError("the hot-spots are there once the block has been left")
        return self._hotspots

    def found(self, hotspots: Hotspots) -> None:
        """The block has been left."""
        self._hotspots = hotspots


@contextmanager
def by_function(title: str = "this process", *, station: Station | None = None) -> Iterator[Looked]:
    """Measure the block and share its joules over Python functions by sampled CPU time.

    ::

        with by_function() as looked:
            with looked.stage("preprocess"):  # a stage of the measurement too
                prepare()
            work()
        print(looked.hotspots.flat()[0])

    The thread that enters the block and all threads started in it are sampled; what other threads,
    helper threads of libraries and child processes use goes to the function that ran meanwhile, or
    stays with the whole.

    Args:
        title: what the result is called.
        station: the sensors to use; by default all that can be trusted here.

    Raises:
        MissingDependency: pyinstrument is not installed.
    """
    sampler, meter = Sampler(), Meter(station)
    looked = Looked(meter.stage)
    with meter:
        sampler.start()
        try:
            yield looked
        finally:
            sampler.stop()
    tally = sampler.tally()
    tally.cpu_s += max(0.0, meter.measurement.cpu_s - tally.total_cpu_s())  # children, and the two ends
    looked.found(
        Hotspots.share(
            title,
            tally,
            meter.measurement,
            samples=sampler.samples,
            looking_cpu_s=sampler.looking_cpu_s,
        )
    )
