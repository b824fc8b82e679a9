"""`Outlook`: what passes could save at best, and what making them takes, told before anything is made."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from negawatt.artifact.shape import ModelShape
from negawatt.compress import parse
from negawatt.compress.effect import Effect, Situation
from negawatt.engine import Settings
from negawatt.engine.backends import backend
from negawatt.errors import NegawattError
from negawatt.home import home
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.space import Space
from negawatt.tuning.workshop import Workshop

NOTHING = 0.99
"""Passes that leave more than this of what is expected without them, at best, are not tried."""
MAKING_SHARE = 0.4
"""Passes are not tried whose making takes more than this share of the time left to search."""
MAKING_S_PER_MPARAM = {
    "rtn": 0.1, "hqq": 0.2, "magnitude": 0.1, "svd": 0.5, "vocabulary": 1.2, "depth": 2.0, "width": 1.0,
    "smoothquant": 1.0, "wanda": 1.0, "awq": 1.5, "gptq": 0.35, "sparsegpt": 1.0, "mixed": 1.0,
    "lowrank": 2.5,
}  # fmt: skip
"""Seconds that a pass takes for a million parameters, before this machine has made its own experience: of
``rtn``, ``vocabulary`` and ``gptq`` measured on two cores of a server, of others guessed from what they do.
Passes that train are not among them: their time is in their steps."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A candidate without passes, as it was measured.

    Attributes:
        cost: as in `Look`.
        layer_bytes, head_bytes: read by each of its steps.
    """

    cost: float
    layer_bytes: float
    head_bytes: float


@dataclass(frozen=True, slots=True)
class Prospect:
    """The cost of a candidate at best, in the unit of `Look.cost` (None: unknown), and why no lower."""

    cost: float | None
    why: str


class Outlook:
    """Foretells from what was measured without passes, and each pass's own `effect`.

    Args:
        shapes: of the models by name; one that has no shape is not foretold.
    """

    def __init__(self, shapes: Mapping[str, ModelShape]) -> None:
        self._shapes = shapes
        self._seen: dict[tuple[str, str, int], Seen] = {}
        self._rates: dict[str, float] | None = None

    def learn(self, candidate: Candidate, seen: Seen) -> None:
        """Take note of a candidate that was measured; those with passes tell nothing of other passes.

        Nor does a format that rounds inputs, as passes do which save arithmetic: both do not come together.
        """
        rounds = candidate.settings.weight_format in backend(candidate.settings.engine).encoder_formats
        if candidate.passes or seen.layer_bytes <= 0 or rounds:
            return
        key = self._key(candidate)
        if key not in self._seen or seen.cost < self._seen[key].cost:
            self._seen[key] = seen

    def against(
        self, candidate: Candidate, least: float, left_s: float, *, made: bool, required: bool = False
    ) -> Prospect | None:
        """What speaks against making a candidate's weights; None where nothing does.

        Args:
            candidate: with passes.
            least: what the search expects to end with otherwise.
            left_s: seconds left to search.
            made: its weights are there already.
            required: every candidate has these passes, so all of the time may go into making them.
        """
        found = self.prospect(candidate)
        if found is not None and found.cost is not None and found.cost > NOTHING * least:
            return Prospect(
                found.cost, f"at best {found.cost / least:.2f} times what is expected without it: {found.why}"
            )
        making_s = 0.0 if made else self.making_s(candidate)
        if making_s > (1.0 if required else MAKING_SHARE) * left_s:
            why = f"making it takes about {making_s:.0f} s, and {max(0.0, left_s):.0f} s are left to search"
            return Prospect(None, why)
        return None

    def out_of_reach(self, space: Space, search_s: float, workshop: Workshop) -> dict[str, str]:
        """Passes of a space that are not worth looking at in a search of so many seconds, and why.

        One of which something was made already is not among them, nor one that is required.
        """
        found: dict[str, str] = {}
        for each in space.passes:
            settings = Settings(engine=space.engines[0])
            made = [Candidate(settings, (v,), m) for v in each.variants() for m in space.models]
            takes_s = min(map(self.making_s, made))
            slow = takes_s > MAKING_SHARE * search_s and not each.required
            if slow and not any(map(workshop.is_made, made)):
                found[each.name] = (
                    f"making it takes about {takes_s:.0f} s, and {search_s:.0f} s are given to the search"
                )
        return found

    def prospect(self, candidate: Candidate) -> Prospect | None:
        """The best that can be hoped of a candidate with passes; None where nothing is known.

        It is the cost of the cheapest format of the same model, engine and batch without passes, times the
        least factor that the passes leave of anything a step needs: hopeful on purpose, since it only
        serves to leave out what cannot win.
        """
        seen, shape = self._seen.get(self._key(candidate)), self._shapes.get(candidate.model)
        if not candidate.passes or seen is None or shape is None:
            return None
        passes = list(map(parse, candidate.passes))
        layers = max(1, shape.n_params - shape.vocab * shape.hidden)
        packed = any(each.packs for each in passes)
        at = Situation(
            shape, candidate.settings.engine, 8 * seen.layer_bytes / layers, seen.layer_bytes,
            seen.head_bytes, "native" if packed else candidate.settings.weight_format,
        )  # fmt: skip
        try:
            effects = [each.effect(at) for each in passes]
        except NegawattError:
            return None  # the pass will say itself what does not fit
        return Prospect(seen.cost * _least(effects), "; ".join(e.why for e in effects if e.why))

    def making_s(self, candidate: Candidate) -> float:
        """Seconds that making its weights is likely to take; 0 for passes of which nothing is known."""
        shape = self._shapes.get(candidate.model)
        if shape is None:
            return 0.0
        known = {**MAKING_S_PER_MPARAM, **self._experience()}
        return sum(known.get(parse(each).name, 0.0) for each in candidate.passes) * shape.n_params / 1e6

    def _experience(self) -> dict[str, float]:
        """Seconds for a million parameters by pass, as made on this machine before."""
        if self._rates is None:
            found: dict[str, list[float]] = {}
            for file in (home() / "cache" / "made").glob("*/cost.json"):
                try:
                    row = json.loads(file.read_text("utf-8"))
                    found.setdefault(str(row["pass"]), []).append(
                        float(row["duration_s"]) / float(row["mparams"])
                    )
                except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
                    continue  # a damaged record is none
            self._rates = {name: median(values) for name, values in found.items()}
        return self._rates

    @staticmethod
    def _key(candidate: Candidate) -> tuple[str, str, int]:
        return candidate.model, candidate.settings.engine, candidate.settings.batch


def _least(effects: list[Effect]) -> float:
    """The least that is left of any part of a step's cost when all effects come together."""
    parts = ("read", "unpack", "arithmetic", "start", "context")
    return min(math.prod(float(getattr(effect, part)) for effect in effects) for part in parts)
