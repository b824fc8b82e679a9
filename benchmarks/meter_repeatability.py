"""Does the same work cost the same joules again? Quiet, and with the other core kept busy.

    python benchmarks/meter_repeatability.py --minutes 3 --file samples.jsonl   take samples, add to the file
    python benchmarks/meter_repeatability.py --minutes 0 --file samples.jsonl   only sum up what is there

Run it several times over an hour or a day with the same file; the summary is over all of it. One
sample is a fixed amount of work, cut into slices that take turns with slices of a fixed reference
load. Samples with the other cores left alone and with one kept busy by another process alternate.
Our joules are those of this process's CPU time; the peers' methods go by the wall clock: what
CodeCarbon reports for the very same stretch (an environment of its own, ``--environments``), and
constant power times elapsed time, which is what all of them do where no counter can be read.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np

from environments import environment
from meter_windows import PACKAGES, Peer, detached
from negawatt.meter import Meter
from negawatt.profiling import reference_load

SLICES = 60
LAYERS, WIDTH = 8, 1024


class Decoding:
    """Work that is like decoding on a CPU: every step multiplies a vector by 134 MB of weights.

    Between the layers it normalises, exponentiates and adds in caches, as attention does.
    """

    def __init__(self) -> None:
        dice = np.random.default_rng(0)
        self.weights = [
            dice.standard_normal((WIDTH, 4 * WIDTH), np.float32) / WIDTH**0.5 for _ in range(LAYERS)
        ]
        self.keys = dice.standard_normal((512, WIDTH), np.float32)

    def __call__(self) -> None:
        x = np.ones(WIDTH, np.float32)
        for weights in self.weights:
            wide = np.maximum(x @ weights, 0.0)
            x = wide.reshape(4, WIDTH).sum(0)
            x /= np.sqrt((x * x).mean() + 1e-6)
            scores = np.exp((self.keys @ x) / 1000)
            x = x + (scores / scores.sum()) @ self.keys


class Prefilling:
    """Work that is like prefilling or training: products of matrices that stay in the caches."""

    def __init__(self) -> None:
        self.matrix = np.random.default_rng(1).standard_normal((512, 512), np.float32)

    def __call__(self) -> None:
        for _ in range(8):
            self.matrix @ self.matrix


class Streaming:
    """Reference for decoding: vector times 134 MB, and a fifth of the time arithmetic in caches."""

    def __init__(self) -> None:
        self.weights, self.vector = np.ones((4096, 8192), np.float32), np.ones(4096, np.float32)
        self.block = np.linspace(0.0, 1.0, 65_536, dtype=np.float32)

    def __call__(self) -> None:
        self.vector @ self.weights
        for _ in range(100):
            np.multiply(self.block, self.block).sum()


class Multiplying:
    """Reference for prefilling: products of smaller matrices."""

    def __init__(self) -> None:
        self.matrix = np.ones((384, 384), np.float32)

    def __call__(self) -> None:
        for _ in range(18):
            self.matrix @ self.matrix


REFERENCES = {"decode": "streaming", "prefill": "multiplying"}
"""For each kind of work a fixed load whose mix of memory traffic and arithmetic is like its own."""


@contextmanager
def neighbour(busy: bool) -> Iterator[None]:
    """Another process that keeps a core busy with arithmetic and memory traffic of its own."""
    if not busy:
        yield
        return
    code = "import numpy as np\nx = np.ones(8_000_000, np.float32)\nwhile True: x.sum(); sum(range(20_000))"
    with detached(sys.executable, "-c", code):
        time.sleep(0.5)
        yield


def sample(loads: dict[str, Callable[[], Any]], peer: Peer | None) -> dict[str, Any]:
    """A fixed number of slices of every load in turn, and once more of the references at the end."""
    spent: dict[str, list[float]] = {name: [] for name in loads}
    waited: dict[str, list[float]] = {name: [] for name in loads}

    def slice_of(name: str) -> None:
        begun = time.perf_counter()
        with Meter() as meter:
            loads[name]()
        waited[name].append(time.perf_counter() - begun)
        value = meter.measurement.energy.value_j
        assert value is not None
        spent[name].append(value)

    if peer is not None:
        peer.ask("start")
    for _ in range(SLICES):
        for name in loads:
            slice_of(name)
    whole_j = peer.ask("stop")["energy_j"] if peer is not None else None
    for name in REFERENCES.values():
        slice_of(name)
    return {"unix_s": time.time(), "joules": spent, "wall_s": waited, "codecarbon_j": whole_j}


Sample = dict[str, Any]


def paired(sample: Sample, work: str, unit: str, reference: str = "") -> float:
    """The median over slices of the work's figure to the mean of the references beside it."""
    r = sample[unit][reference or REFERENCES[work]]
    after = r[1:] if len(r) > SLICES else r
    pairs = zip(sample[unit][work], r, after, strict=False)
    return statistics.median(2 * w / (before + after) for w, before, after in pairs)


def whole(sample: Sample, unit: str) -> float:
    """Both kinds of work together, without the references."""
    return sum(sample[unit]["decode"]) + sum(sample[unit]["prefill"])


FIGURES: dict[str, Callable[[Sample], float | None]] = {
    "joules, decoding ÷ reference": lambda s: paired(s, "decode", "joules"),
    "joules, prefilling ÷ reference": lambda s: paired(s, "prefill", "joules"),
    "joules, decoding ÷ `profiling.reference_load`": lambda s: paired(s, "decode", "joules", "stream"),
    "joules as they are": lambda s: whole(s, "joules"),
    "wall clock × constant power, as it is": lambda s: whole(s, "wall_s"),
    "wall clock, decoding ÷ reference": lambda s: paired(s, "decode", "wall_s"),
    "CodeCarbon 3.3.2, task window": lambda s: s["codecarbon_j"],
}


def summary(samples: Sequence[dict[str, Any]]) -> None:
    """Spread of every figure, quiet and with a busy neighbour, relative to its quiet median."""
    quiet = [s for s in samples if not s["busy"]]
    busy = [s for s in samples if s["busy"]]
    first, last = min(s["unix_s"] for s in samples), max(s["unix_s"] for s in samples)
    print(f"{len(quiet)} quiet and {len(busy)} busy samples over {(last - first) / 60:.0f} minutes\n")
    print("| figure | quiet: 95 % within | worst | busy neighbour: 95 % within | worst | shift |")
    print("|" + "---|" * 6)
    for name, figure in FIGURES.items():
        still = [x for s in quiet if (x := figure(s)) is not None]
        crowded = [x for s in busy if (x := figure(s)) is not None]
        if not still or not crowded:
            print(f"| {name} | – | – | – | – | – |")
            continue
        middle = statistics.median(still)
        cells = [*_spread(still, middle), *_spread(crowded, middle)]
        shift = statistics.median(crowded) / middle - 1
        print(f"| {name} | {' | '.join(f'±{100 * c:.1f} %' for c in cells)} | {100 * shift:+.1f} % |")


def _spread(values: Sequence[float], middle: float) -> tuple[float, float]:
    """The half-width about `middle` that 95 % of the values are within, and the worst."""
    away = sorted(abs(value / middle - 1) for value in values)
    return away[max(0, -(-95 * len(away) // 100) - 1)], away[-1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--file", type=Path, default=Path("repeatability.jsonl"))
    parser.add_argument("--environments", type=Path, default=Path(".negawatt/peers"))
    options = parser.parse_args()

    if options.minutes > 0:
        python = environment(options.environments.absolute(), "codecarbon", PACKAGES["codecarbon"])
        peer = Peer(python, "meter_codecarbon.py")
        loads = {
            "streaming": Streaming(),
            "decode": Decoding(),
            "multiplying": Multiplying(),
            "prefill": Prefilling(),
            "stream": reference_load,
        }
        sample(loads, None)  # the first touch of buffers and sensors
        end = time.monotonic() + 60 * options.minutes
        with options.file.open("a") as file:
            while time.monotonic() < end:
                for busy in (False, True):
                    with neighbour(busy):
                        taken = {"busy": busy, **sample(loads, peer)}
                    print(json.dumps(taken), file=file, flush=True)
        peer.close()
    summary([json.loads(line) for line in options.file.read_text().splitlines()])


if __name__ == "__main__":
    main()
