"""What tune finds for common applications, each on real data and within a time budget.

    python benchmarks/applications.py --work FOLDER [--only NAME …] [--budget 220s]

Applications: ``sentiment`` at batch 1 and ``sentiment-free`` in any batch (MPNet with a head, and the
MiniLM that learnt from it, as ``compress_distil.py --work FOLDER --student "minilm, whole"`` leaves them;
judged on the fifth of the snippets that neither learnt from), ``spam`` (MiniLM with a head trained here on
four of five mails, judged on the rest), ``search`` (MiniLM: which article does a sentence sum up?) and
``search-free`` (MPNet or MiniLM, in any batch), ``choice`` (PIQA), ``chat`` (free generation, no labels)
and ``summary`` (XSum), the last three with SmolLM2-135M. The baseline is stock transformers in fp32, one
thread, one text at a time. An unfinished search in FOLDER is taken up again; a finished one is only told.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from negawatt.artifact import Artifact
from negawatt.cli.settings import seconds
from negawatt.compress import Recipe, compress, parse
from negawatt.compress.labelled import LEARNT_SHARE
from negawatt.engine import Settings
from negawatt.run import Run
from negawatt.tuning import Constraints, Space, tune
from negawatt.tuning.space import BATCHES
from negawatt.workload import Workload
from negawatt.workload.writer import write_workload

CONTEXT = 128
"""Tokens that a snippet or the beginning of a mail may have."""
LEARNT_MAILS, JUDGED_MAILS = 1200, 1500
HEAD = "classifier:frozen=6,epochs=3,rate=1e-3"


@dataclasses.dataclass(frozen=True)
class Application:
    """A search: models, the first being what runs today, a workload, and what is asked."""

    models: tuple[str, ...]
    workload: Workload
    drop: float | None
    batches: tuple[int, ...] = (1,)
    context: int = 1024


def unseen(texts: Path) -> Workload:
    """The part of a workload that no classifier learnt from."""
    return Workload.open(texts).split(LEARNT_SHARE, 0)[1]


def sentiment(work: Path, batches: tuple[int, ...]) -> Application:
    models = (str(work / "teacher"), str(work / "minilm-whole"))
    return Application(models, unseen(work / "snippets"), 0.02, batches, CONTEXT)


def spam(work: Path) -> Application:
    """A head on MiniLM, which is trained here if it was not before."""
    learnt, judged = Workload.open("spam").split(LEARNT_SHARE, 0)
    model = work / "spam-head"
    if not model.exists():
        few = dataclasses.replace(learnt.subset(LEARNT_MAILS), name="mails to learn from")
        texts = str(write_workload(few, work / "mails"))
        recipe = Recipe("minilm-l6", (parse(HEAD),), texts, windows=8, heldout=4, length=128)
        compress(recipe, model, keep_worse=True)
    return Application((str(model),), judged.subset(JUDGED_MAILS), 0.01, BATCHES, 384)


def search(models: tuple[str, ...], drop: float, batches: tuple[int, ...]) -> Application:
    return Application(models, Workload.open("xsum-search"), drop, batches, 256)


def choice(work: Path) -> Application:
    return Application(("smollm2-135m-instruct",), Workload.open("piqa"), 0.02, (1,), 512)


def chat(work: Path) -> Application:
    return Application(("smollm2-135m-instruct",), Workload.open("interactive-chat"), 0.1)


def summary(work: Path) -> Application:
    return Application(("smollm2-135m-instruct",), Workload.open("xsum").subset(200), 0.05)


APPLICATIONS: dict[str, Callable[[Path], Application]] = {
    "sentiment": lambda work: sentiment(work, (1,)),
    "sentiment-free": lambda work: sentiment(work, BATCHES),
    "spam": spam,
    "search": lambda work: search(("minilm-l6",), 0.02, (1,)),
    "search-free": lambda work: search(("mpnet-base", "minilm-l6"), 0.02, BATCHES),
    "choice": choice,
    "chat": chat,
    "summary": summary,
}


def searched(name: str, work: Path, budget_s: float, again: bool) -> dict[str, Any]:
    """The result of an application's search, made now if there is none."""
    path = work / "runs" / name
    while again and path.exists():
        path = path.with_name(path.name + "-again")
    if (path / "run.json").exists() and (found := Run.open(path, kind="tune").result) is not None:
        return dict(found)
    wanted = APPLICATIONS[name](work)
    artifact, *others = map(Artifact.open, wanted.models)
    baseline = Settings("transformers", weight_format="fp32", threads=1, max_context=wanted.context)
    path.parent.mkdir(parents=True, exist_ok=True)
    return tune(
        artifact, wanted.workload, constraints=Constraints(max_quality_drop=wanted.drop),
        space=Space.default(batches=wanted.batches, max_context=wanted.context), baseline=baseline,
        models=others, time_budget_s=budget_s, path=path, command=sys.argv,
    )  # fmt: skip


def told(name: str, result: dict[str, Any]) -> None:
    """What a search found, in a few lines."""
    verdict, before, after = result["verdict"], result["baseline"], result["best"]
    print(f"\n{name}: {verdict['text']}")
    for label, each in (("before", before), ("after", after)):
        quality = each.get("quality") or {}
        judged = f", {quality['metric']} {quality['value']:.4f} of {quality['n']}" if quality else ""
        print(f"  {label}: {1000 * each['cpu_s_per_token']:.2f} CPU-ms per {each['unit']}{judged}")
    if (ratio := verdict["ratio"]) is not None:
        print(f"  {ratio['value']:.1f} times fewer ({ratio['low']:.1f} to {ratio['high']:.1f})")
    search = result["search"]
    print(
        f"  {search['trials']} trials, {search['duration_s']:.0f} s, {search['cpu_s']:.0f} CPU-s", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for models and runs")
    parser.add_argument("--only", action="append", choices=sorted(APPLICATIONS))
    parser.add_argument("--budget", default="220s", help="for each application")
    parser.add_argument("--again", action="store_true", help="search anew where there is a result")
    parser.add_argument("--json", action="store_true", help="print the results whole")
    options = parser.parse_args()
    for name in options.only or APPLICATIONS:
        result = searched(name, options.work, seconds(options.budget), options.again)
        if options.json:
            print(json.dumps(result))
        else:
            told(name, result)


if __name__ == "__main__":
    main()
