"""Negawatt's winner against what Olive makes of the same model and keeps its quality.

    python benchmarks/against_olive.py RUN --work FOLDER --calibration TEXT [--items 1148] [--rounds 6]

RUN is a finished ``negawatt tune`` run. Olive lives in an environment of its own below ``--environments``
and makes models of the checkpoint in FOLDER by the ways of ``olive_ways.py``: its own commands for a CPU,
and, marked "by hand", options that it does not choose: eight bits in groups of 64, mixed bits, and the
recipe that ``olive optimize --precision int4`` writes (``gptq``: GPTQ, then ONNX Runtime GenAI's model
builder, calibrated on a text file in place of a data set from a hub; ``rtn``: without GPTQ). Olive does not
choose among them. The rule that RUN's winner had to keep does: how much better than it stock may be, bounded
from one side at 95 %. Each of Olive's has the whole of that error; the winner is judged beside them.

Quality is PIQA, the same items for all, the last ones drawn: a search screens on the first. CPU seconds of
a token are measured in turns, one chat request of 96 new tokens a round, Olive's with one thread and with
its default. What was made and judged is kept in FOLDER, and a run that was broken off goes on from there.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from against_peers import NEW_TOKENS, Ours, Peer, chat_prompts
from environments import environment
from negawatt.artifact import Artifact
from negawatt.engine import Settings
from negawatt.profiling.quality import ITEMS_PER_CALL, Quality, judged
from negawatt.profiling.scores import Scores
from negawatt.run import Run
from negawatt.workload import Difference, QualityItem, Ratio, Workload, paired_difference, ratio_interval
from negawatt.workload.split import draw_order
from olive_ways import PACKAGES, WAYS, Made, Way, Workbench

CONFIDENCE = 0.95


class Olive(Peer):
    """One of Olive's models, running; to `judged` it looks like an engine that scores."""

    labels: tuple[str, ...] = ()
    width = None
    last_steps: tuple[Any, ...] = ()

    def __init__(self, made: Made, python: Path, threads: int, artifact: Artifact) -> None:
        name = f"Olive, {made.way.name}, {f'{threads} thread' if threads else 'default threads'}"
        super().__init__(name, python, "olive_genai.py", str(made.folder), str(threads), batch=1)
        self.artifact, self.settings = artifact, Settings()

    def score(self, pairs: list[tuple[list[int], list[int]]]) -> tuple[list[list[list[float]]], Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"score": pairs}) + "\n")
        self.process.stdin.flush()
        found = self._read()
        usage = SimpleNamespace(cpu_s=found["cpu_s"], wall_s=found["wall_s"])
        return [[row] for row in found["log_probs"]], usage


@dataclass(frozen=True)
class Contest:
    """The run whose winner is compared, and what it is compared on.

    Attributes:
        run: finished.
        artifact, own: the stock model, and the winner's, which passes may have made.
        stock, winner: settings of the run's baseline and of its best.
        limit: on how much better stock may be, as a share.
        items: that quality is judged on.
        metrics: kind of item → metric.
        python: of Olive's environment.
        work: the folder where answers are kept.
    """

    run: Run
    artifact: Artifact
    own: Artifact
    stock: Settings
    winner: Settings
    limit: float
    items: tuple[QualityItem, ...]
    metrics: dict[str, str]
    python: Path
    work: Path

    @classmethod
    def of(cls, folder: Path, n_items: int, python: Path, work: Path) -> Contest:
        run = Run.open(folder, kind="tune")
        assert run.result is not None, "the run is not finished"
        limit = run.manifest["question"]["constraints"]["max_quality_drop"]
        assert limit is not None, "the run had no limit on the drop of quality"
        best, baseline = run.result["best"], run.result["baseline"]
        workload = Workload.open("chat-piqa")
        artifact = Artifact.open(run.manifest["artifact"]["name"])
        own = Artifact.open(folder / "artifact") if best.get("passes") else artifact
        return cls(
            run, artifact, own, Settings.from_json(baseline["settings"]),
            Settings.from_json(best["settings"]), limit, tuple(draw_order(workload.quality, 0)[-n_items:]),
            dict(workload.metrics), python, work,
        )  # fmt: skip

    def own_scores(self) -> tuple[Quality, Quality]:
        """Stock's and the winner's; kept by Negawatt itself."""
        workload, found = Workload.open("chat-piqa"), []
        for artifact, settings in ((self.artifact, self.stock), (self.own, self.winner)):
            with Scores(artifact, workload, self.stock) as scores:
                found.append(scores.quality(settings, self.items))
        return found[0], found[1]

    def scores_of(self, made: Made) -> Quality:
        """What one of Olive's models answers; kept after every few items."""
        file = self.work / f"{made.way.name}.scores.json"
        kept: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"cpu_s": 0.0, "scores": {}}
        missing = [item for item in self.items if item.id not in kept["scores"]]
        if missing:
            peer = Olive(made, self.python, 0, self.artifact)
            for start in range(0, len(missing), ITEMS_PER_CALL):
                part = missing[start : start + ITEMS_PER_CALL]
                found = judged(peer, part, self.metrics)  # type: ignore[arg-type]
                kept["scores"] |= found.scores
                kept["cpu_s"] += found.cpu_s
                file.write_text(json.dumps(kept))
            peer.close()
        return Quality("accuracy", {i.id: kept["scores"][i.id] for i in self.items}, cpu_s=kept["cpu_s"])


@dataclass(frozen=True)
class Cost:
    """CPU seconds of a token, and how many times ours that is."""

    name: str
    cpu_s: float
    ratio: Ratio


@dataclass(frozen=True)
class Verdict:
    """A model's quality, and whether the rule lets it pass."""

    quality: Quality
    kept: bool


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True, help="a text file for GPTQ")
    parser.add_argument("--items", type=int, default=1148, help="of PIQA; 0 judges nothing")
    parser.add_argument("--rounds", type=int, default=6, help="of measuring; 0 measures no cost")
    parser.add_argument("--environments", type=Path, default=Path(".negawatt/peers"))
    parser.add_argument("--ways", default=",".join(w.name for w in WAYS), help="some of: %(default)s")
    options = parser.parse_args()

    python = environment(options.environments.absolute(), "olive", PACKAGES)
    contest = Contest.of(options.run, max(1, options.items), python, options.work.resolve())
    bench = Workbench(python, contest.artifact.checkpoint(), options.calibration, options.work)
    makings = [bench.made(way) for way in chosen(options.ways)]
    tell_makings(makings)
    models = [made for made in makings if made.folder is not None]
    verdicts = qualities(contest, models) if options.items else {}
    found = costs(contest, models, options.rounds) if options.rounds >= 2 else {}
    if verdicts and found:
        conclude(contest, makings, verdicts, found)


def chosen(names: str) -> list[Way]:
    ways = {way.name: way for way in WAYS}
    return [ways[name] for name in names.split(",")]


def tell_makings(makings: list[Made]) -> None:
    print(f"| Olive's way | making it, CPU-s | s | MB |\n|{'---|' * 4}")
    for made in makings:
        size = f"{made.bytes / 1e6:.0f}" if made.folder else f"none: {made.error}"
        print(f"| {made.way.name}: {made.way.text} | {made.cpu_s:.0f} | {made.wall_s:.0f} | {size} |")
    print(flush=True)


def qualities(contest: Contest, models: list[Made]) -> dict[str, Verdict]:
    """PIQA of all, how it lies to stock's and to ours, and whether the rule lets it pass."""
    stock, ours = contest.own_scores()
    print(f"| | PIQA of {len(contest.items)} (95 %) | points to ours (95 %) | points to stock | "
          f"at most lost (95 %) | kept | judging, CPU-s |\n|{'---|' * 7}")  # fmt: skip
    found: dict[str, Verdict] = {}
    for name, made in {"stock": stock, "ours": ours, **{m.way.name: m for m in models}}.items():
        quality = made if isinstance(made, Quality) else contest.scores_of(made)
        to_stock, to_ours = difference(stock, quality), difference(ours, quality)
        verdict = found[name] = Verdict(quality, to_stock.drop_is_proved_below(contest.limit))
        share = quality.interval
        cells = [
            name,
            f"{100 * share.value:.1f} % ({100 * share.low:.1f}–{100 * share.high:.1f})",
            f"{100 * to_ours.mean:+.1f} ({100 * to_ours.low:+.1f} to {100 * to_ours.high:+.1f})",
            f"{100 * to_stock.mean:+.1f}",
            f"{100 * to_stock.upper_one_sided:.2f}",
            "yes" if verdict.kept else "no",
            f"{quality.cpu_s:.0f}" if quality.cpu_s else "–",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)
    print()
    return found


def difference(base: Quality, other: Quality) -> Difference:
    """Of the same items, one by one."""
    names = list(base.scores)
    return paired_difference(
        [base.scores[i] for i in names], [other.scores[i] for i in names], confidence=CONFIDENCE
    )


def costs(contest: Contest, models: list[Made], rounds: int) -> dict[str, list[Cost]]:
    """Of each model, by the name of its way, with one thread and with the default; all take turns."""
    artifact = contest.artifact
    peers = [(m.way.name, Olive(m, contest.python, n, artifact)) for m in models for n in (1, 0)]
    runtimes: list[Any] = [peer for _, peer in peers]
    runtimes.append(Ours(f"Negawatt: {contest.winner}", contest.own, contest.winner))
    prompts = chat_prompts(artifact)
    samples: dict[str, list[float]] = {r.name: [] for r in runtimes}
    for number in range(-1, rounds):  # round -1 warms up
        for k in range(len(runtimes)):
            runtime = runtimes[(max(number, 0) + k) % len(runtimes)]
            answer = runtime.run([prompts[max(number, 0) % len(prompts)]], NEW_TOKENS if number >= 0 else 4)
            if number >= 0:
                samples[runtime.name].append(answer["cpu_s"] / answer["tokens"])
    found: dict[str, list[Cost]] = {}
    print(f"| | CPU-ms a token | times ours (95 %) |\n|{'---|' * 3}")
    for name, runtime in [*peers, ("ours", runtimes[-1])]:
        runtime.close()
        taken = samples[runtime.name]
        ratio = ratio_interval(taken, samples[runtimes[-1].name], robust=len(taken) >= 6)
        found.setdefault(name, []).append(Cost(runtime.name, statistics.median(taken), ratio))
        print(f"| {runtime.name} | {1000 * statistics.median(taken):.2f} | {told(ratio)} |", flush=True)
    print()
    return found


def told(ratio: Ratio) -> str:
    return f"{ratio.value:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"


def conclude(
    contest: Contest, makings: list[Made], verdicts: dict[str, Verdict], found: dict[str, list[Cost]]
) -> None:
    """The cheapest of what kept the quality, beside ours, and what finding each took."""
    assert contest.run.result is not None
    kept = [m for m in makings if m.folder is not None and verdicts[m.way.name].kept]
    for what, some in (
        ("its own commands", [m for m in kept if not m.way.by_hand]),
        ("any way", kept),
    ):
        if not some:
            print(f"Of what Olive made by {what} nothing kept the quality.")
            continue
        best = min(some, key=lambda m: min(c.cpu_s for c in found[m.way.name]))
        cost = min(found[best.way.name], key=lambda c: c.cpu_s)
        print(f"Of what Olive made by {what} and that kept the quality, {cost.name} is the cheapest: "
              f"{told(cost.ratio)} times ours a token, made in {best.cpu_s:.0f} CPU-s.")  # fmt: skip
    making = sum(m.own_cpu_s for m in makings)
    judging = sum(verdicts[m.way.name].quality.cpu_s for m in makings if m.folder is not None)
    search = contest.run.result["search"]["cpu_s"]
    print(f"All of Olive's makings took {making:.0f} CPU-s, judging them {judging:.0f} CPU-s; "
          f"our search took {search:.0f} CPU-s, its judging included.")  # fmt: skip


if __name__ == "__main__":
    main()
