"""Measure every point of a space once, and keep the table: what a search over it would have seen.

    python benchmarks/record_landscapes.py smollm2-b1
    python benchmarks/record_landscapes.py --list

Each point is loaded, looked at (16 tokens in each slot) and measured in two windows of whole groups, in an
order drawn at random, so that the host's drift does not favour an engine. Each arithmetic is compared once
with what the reference wrote: the share of tokens that it would have chosen too. A table grows point by point
under ``benchmarks/landscapes/``: a recording that was stopped goes on where it was, and ``--minutes`` stops
it in time.

What a point costs is in CPU seconds, divided by the reference load beside it and multiplied by the table's
first. `spent` is what a search pays: the look, and then the whole measurement at the search's own lengths of
answer (`SEARCH_TOKENS`), extrapolated from the shorter windows recorded here.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from negawatt.artifact import Artifact
from negawatt.engine import Engine, Request, Settings
from negawatt.engine.backends import backend
from negawatt.errors import EngineError
from negawatt.home import write_json
from negawatt.meter import fingerprint
from negawatt.profiling.quality import (
    ReferenceAnswers,
    agreement,
    reference_answers,
)
from negawatt.profiling.reference_load import reference_load
from negawatt.profiling.window import groups_for, measure, requests_of, spread, warm_up
from negawatt.testing.small_models import small_model
from negawatt.tuning import Space
from negawatt.tuning.attempt import SEARCH_GROUPS, first_look
from negawatt.workload import TrafficItem, Workload

FOLDER = Path(__file__).with_name("landscapes")
REFERENCE = Settings(engine="transformers", weight_format="fp32", max_context=1024)
ENGINES = ("llamacpp", "openvino", "transformers")
THREADS = (1,)
"""Threads that wait for each other spin, and on a machine that does anything else what they spend then is no
property of the point."""
QUALITY_ITEMS, QUALITY_TOKENS = 8, 48
"""Requests whose answers by the reference every arithmetic is compared on, and the length of those."""
SEARCH_TOKENS = 96
"""Of an answer in a search, on average; a search measures two groups at batch 1, one else."""


@dataclass(frozen=True)
class Plan:
    """A landscape to record.

    Attributes:
        model: a name of the catalog, or of `SHAPES`: a random model of that shape.
        batches: that the space offers.
        tokens: length of the answers in the windows measured, by batch.
        windows: of each point.
    """

    model: str
    batches: tuple[int, ...]
    tokens: int
    windows: int = 2


SHAPES = {
    "deep": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "head_dim": 64},
    "wide": {"hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 2, "head_dim": 192},
}

PLANS = {
    "smollm2-b1": Plan("smollm2-135m-instruct", (1,), 32),
    "smollm2-b1-avx2": Plan("smollm2-135m-instruct", (1,), 32),  # on a processor that has no more than that
    "smollm2-b8": Plan("smollm2-135m-instruct", (8,), 16),
    "smollm2-b32": Plan("smollm2-135m-instruct", (32,), 16, 1),
    "deep-b1": Plan("deep", (1,), 48),
    "deep-free": Plan("deep", (1, 8, 32), 24),
    "wide-free": Plan("wide", (1, 8, 32), 24),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"of {', '.join(PLANS)}; one after the other")
    parser.add_argument("--minutes", type=float, default=3.5)
    parser.add_argument("--list", action="store_true", help="say how far each recording is")
    options = parser.parse_args()
    if unknown := set(options.names) - set(PLANS):
        parser.error(f"no landscape {', '.join(sorted(unknown))}")
    if options.list or not options.names:
        for name in PLANS:
            table = read(name)
            print(f"{name}: {len(table['points'])} points, {len(table['quality'])} arithmetics")
        return
    until_s = time.monotonic() + 60 * options.minutes
    for name in options.names:
        with tempfile.TemporaryDirectory(prefix="negawatt-drawn-") as folder:
            Recorder(name, Path(folder), until_s).go()


def read(name: str) -> dict[str, Any]:
    """A table as it stands, empty before its recording."""
    file = FOLDER / f"{name}.json"
    if file.exists():
        return dict(json.loads(file.read_text("utf-8")))
    return {"name": name, "points": [], "quality": []}


class Recorder:
    """One sitting of a recording."""

    def __init__(self, name: str, folder: Path, until_s: float) -> None:
        self.name, self.plan, self.until_s = name, PLANS[name], until_s
        drawn = self.plan.model in SHAPES
        if drawn:
            small_model(folder, "llama", max_position_embeddings=2048, **SHAPES[self.plan.model])
        self.artifact = Artifact.open(str(folder) if drawn else self.plan.model)
        self.workload = Workload.open("interactive-chat")
        traffic = [_plain(t) for t in self.workload.traffic] if drawn else self.workload.traffic
        self.requests = requests_of(self.artifact.tokenizer, traffic, 1024)
        short = sorted(traffic, key=lambda item: len(str(item.prompt)))
        self.items = [replace(item, max_new_tokens=QUALITY_TOKENS) for item in short[::6][:QUALITY_ITEMS]]
        self.space = Space(ENGINES, self.plan.batches, THREADS, 1024, {})
        self.settings = [candidate.settings for candidate in self.space.grid()]
        self.table = read(name)
        if "reference_s" not in self.table:
            self.table |= {
                "model": self.plan.model,
                "workload": self.workload.name,
                "batches": list(self.plan.batches),
                "quality_metric": "top-1 agreement",
                "quality_tokens": QUALITY_ITEMS * QUALITY_TOKENS,
                "measured_tokens": self.plan.tokens,
                "search_tokens": SEARCH_TOKENS,
                "space": self.space.to_json(),
                "machine": fingerprint(),
                "versions": {name: backend(name).version() for name in ENGINES},
                "recorded": time.strftime("%Y-%m-%d"),
                "reference_s": median(reference_load() for _ in range(7)),
            }

    def go(self) -> None:
        known = {Settings.from_json(p["settings"]) for p in self.table["points"]}
        rest = [s for s in self.settings if s not in known]
        random.Random(len(self.name)).shuffle(rest)
        for number, settings in enumerate(rest):
            if time.monotonic() > self.until_s:
                sys.exit(f"{len(rest) - number} points are left")
            self.table["points"].append(self.point(settings))
            self.keep()
        self.qualities()
        print(f"{self.name} is complete")

    def keep(self) -> None:
        FOLDER.mkdir(exist_ok=True)
        write_json(FOLDER / f"{self.name}.json", self.table)

    def point(self, settings: Settings) -> dict[str, Any]:
        print(f"{len(self.table['points'])}: {settings}", file=sys.stderr)
        reference_s, started = self.table["reference_s"], time.monotonic()
        try:
            with Engine(self.artifact, settings) as engine:
                warm_up(engine, self.requests[0])
                look = first_look(engine, self.requests, reference_s)
                peak = engine.last_usage.peak_rss_bytes
                costs = [self.cost(engine, group) for group in self.groups(settings.batch)]
                prepared_s, looked_s = engine.prepare_usage.cpu_s, look.spent_cpu_s
        except EngineError as exc:
            return {"settings": settings.to_json(), "failed": str(exc), "duration_s": _since(started)}
        requests = (
            SEARCH_GROUPS if settings.batch == 1 else len(groups_for(self.requests, settings.batch, 1, 1)[0])
        )
        whole = requests * SEARCH_TOKENS
        return {
            "settings": settings.to_json(),
            "look_cost": look.cost,
            "look_spent_cpu_s": looked_s - prepared_s,
            "prepared_cpu_s": prepared_s,
            "costs": costs,
            "whole_cpu_s": whole * sum(costs) / len(costs),
            "s_per_token": look.s_per_token,
            "peak_rss_bytes": peak,
            "duration_s": _since(started),
        }

    def groups(self, batch: int) -> list[list[Request]]:
        n = self.plan.windows
        chosen = [replace(r, max_new_tokens=self.plan.tokens) for r in spread(self.requests, n * batch)]
        return [chosen[k::n] for k in range(n)]

    def cost(self, engine: Engine, group: Sequence[Request]) -> float:
        window = measure(engine, group)
        return window.cpu_s_per_token * float(self.table["reference_s"]) / window.reference_s

    def qualities(self) -> None:
        """Every arithmetic's drop against the reference on the same items, and what asking cost.

        Quality does not depend on the batch: what another table of this model and processor holds is taken
        from there.
        """
        siblings = [read(name) for name, plan in PLANS.items() if plan.model == self.plan.model]
        here = [table for table in siblings if _processor(table) == _processor(self.table)]
        found = {tuple(q["arithmetic"]): q for table in here for q in table["quality"]}
        for settings in {s.arithmetic: s for s in self.settings}.values():
            if settings.arithmetic not in found:
                if time.monotonic() > self.until_s:
                    sys.exit("qualities are left")
                print(f"quality: {settings}", file=sys.stderr)
                found[settings.arithmetic] = self.quality(settings)
            self.table["quality"] = list(found.values())
            self.keep()

    def quality(self, settings: Settings) -> dict[str, Any]:
        try:
            answers = self.written()
            with Engine(self.artifact, settings.replace(batch=1, speculation="none")) as engine:
                scores = agreement(engine, answers)["top1_match"].scores
                spent_s = engine.last_usage.total_cpu_s
        except EngineError as exc:
            return {"arithmetic": settings.arithmetic, "failed": str(exc)}
        return {
            "arithmetic": settings.arithmetic,
            "drop": 1 - sum(scores.values()) / len(scores),
            "n": len(scores),
            "spent_cpu_s": spent_s,
        }

    @cache  # noqa: B019 - one recorder lives as long as the program
    def written(self) -> ReferenceAnswers:
        with Engine(self.artifact, REFERENCE) as reference:
            return reference_answers(reference, self.items)


def _plain(item: TrafficItem) -> TrafficItem:
    """A chat as a plain text, for a model without a chat template."""
    text = item.prompt if isinstance(item.prompt, str) else " ".join(m.content for m in item.prompt)
    return replace(item, prompt=text[:400])  # its vocabulary is small: a long text would be too many tokens


def _processor(table: dict[str, Any]) -> tuple[Any, ...]:
    machine = table.get("machine", {})
    return tuple(machine.get(name) for name in ("cpu", "cpu_family", "cpu_model"))


def _since(started: float) -> float:
    return time.monotonic() - started


if __name__ == "__main__":
    main()
