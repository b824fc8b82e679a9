"""What ways of embedding cost a query and a document, and which of XSum's articles they find by summaries.

    python benchmarks/embedding_search.py [--model minilm-l6] [--batch 1] [--rounds 4] [--queries 1000]
        [--documents 1000] [--ways transformers:fp32,openvino:int8,…]

All on one thread, their costs in turn. Each embeds the whole corpus and is asked the same queries; nDCG@10 is
told with its difference to the first way, query by query.
"""

from __future__ import annotations

import argparse
import dataclasses
from contextlib import ExitStack

from negawatt.artifact import Artifact
from negawatt.engine import Engine, Settings
from negawatt.profiling.profiler import baseline_ratio
from negawatt.profiling.scores import Scores
from negawatt.profiling.summary import Summary
from negawatt.profiling.window import groups_for, interleave, warm_up
from negawatt.workload import Corpus, Workload, paired_difference
from negawatt.workload.items import queries_among

WAYS = "transformers:fp32,transformers:bf16,openvino:f16,openvino:int8,openvino:w8a8,onnxruntime:int8"


def costs(artifact: Artifact, ways: list[Settings], workload: Workload, rounds: int) -> None:
    """CPU-milliseconds of a query and of a document, and how many times fewer than the first way's."""
    queries = queries_among(workload.quality)
    batch = ways[0].batch
    with ExitStack() as stack:
        engines = [stack.enter_context(Engine(artifact, way)) for way in ways]
        for engine in engines:
            warm_up(engine, queries[0])
        groups = groups_for(queries, batch, rounds + 1, 1)
        windows = [each[1:] for each in interleave(engines, [[group] * len(ways) for group in groups])]
    for way, own in zip(ways, windows, strict=True):
        parts = Summary(tuple(own)).parts
        each = ", ".join(f"{1000 * p.cpu_s_per_text:7.2f} CPU-ms a {p.name}" for p in parts.values())
        ratio = baseline_ratio([w.cpu_s_per_token for w in windows[0]], [w.cpu_s_per_token for w in own])
        print(f"{way.engine + ' ' + way.weight_format:20} {each}, {ratio.text}", flush=True)


def quality(artifact: Artifact, ways: list[Settings], workload: Workload) -> None:
    """nDCG@10 of every way, and by how much it is less than that of the first."""
    before: list[float] = []
    with Scores(artifact, workload, ways[0]) as scores:
        for way in ways:
            found = scores.quality(way, workload.quality)
            own = [found.scores[item.id] for item in workload.quality]
            before = before or own
            told = found.interval
            print(
                f"{way.engine + ' ' + way.weight_format:20} nDCG@10 {told.value:.4f} ({told.low:.4f} to "
                f"{told.high:.4f}), {paired_difference(before, own).text}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="minilm-l6")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--ways", default=WAYS)
    parser.add_argument("--only", choices=("cost", "quality"))
    options = parser.parse_args()
    whole = queries_among(Workload.open("xsum-search").quality)
    corpus = Corpus(whole[0].corpus.documents[: options.documents], 1.0)
    asked = [dataclasses.replace(i, corpus=corpus) for i in whole if set(i.relevant) <= set(corpus.places)]
    workload = dataclasses.replace(Workload.open("xsum-search"), quality=tuple(asked[: options.queries]))
    ways = [
        Settings(engine, weight_format=weights, threads=1, batch=options.batch, max_context=256)
        for engine, weights in (way.split(":") for way in options.ways.split(","))
    ]
    artifact = Artifact.open(options.model)
    if options.only != "quality":
        costs(artifact, ways, workload, options.rounds)
    if options.only != "cost":
        quality(artifact, ways, workload)


if __name__ == "__main__":
    main()
