"""Is smaller cheaper? Every engine's weight formats: bytes, perplexity, CPU time a token at batch 1 and 32.

    python benchmarks/engine_formats.py FOLDER --engine onnxruntime
    python benchmarks/engine_formats.py FOLDER --engine openvino --formats native,int8

Each format runs in turns with the baseline, stock transformers in fp32, in the same sitting and on one
thread, so the ratio beside each figure holds where absolute figures drift. Perplexity is over the first
windows of 512 tokens of characters 200,000 to 600,000 of the Debian handbook, which is fetched into FOLDER.
The weights of this model come from a file of 4 bits, so quantizing back to about that grid looks free.
"""

from __future__ import annotations

import argparse
import math
import statistics
from contextlib import ExitStack
from pathlib import Path

from texts import handbook

from negawatt.artifact import Artifact
from negawatt.engine import Engine, Request, Settings
from negawatt.engine.backends import backend

BASELINE = Settings(engine="transformers", weight_format="fp32", threads=1, max_context=640)
BATCHES = (1, 32)
TOKENS = {1: 24, 32: 12}
PROMPT = 48
WINDOW = 512


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the text is kept")
    parser.add_argument("--engine", required=True)
    parser.add_argument("--formats", help="only these, separated by commas")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    model = Artifact.open(given.model)
    text = handbook(given.folder).read_text("utf-8")[200_000:600_000]
    tokens = model.tokenizer.encode(text[: given.windows * WINDOW * 8])
    formats = given.formats.split(",") if given.formats else backend(given.engine).weight_formats
    print("| engine | weights | MB | perplexity | CPU ms/token, batch 1 | × fp32 | batch 32 | × fp32 |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for weight_format in formats:
        way = BASELINE.replace(engine=given.engine, weight_format=weight_format)
        row(model, tokens, way, given.windows, given.rounds)


def row(model: Artifact, tokens: list[int], way: Settings, windows: int, rounds: int) -> None:
    """One format: its size, its perplexity, and its cost beside the baseline's at each batch."""
    found = []
    for batch in BATCHES:
        with ExitStack() as stack:
            ways = [stack.enter_context(Engine(model, w.replace(batch=batch))) for w in (BASELINE, way)]
            for engine in ways:
                cost(engine, tokens, 2)  # warms up
            costs = [[cost(engine, tokens[n:], TOKENS[batch]) for engine in ways] for n in range(rounds)]
            if batch == 1:
                loss = perplexity(ways[1], tokens, windows)
                n_bytes = size(ways[1].model_path)
        ours = statistics.median(candidate for _, candidate in costs)
        ratio = statistics.median(candidate / base for base, candidate in costs)
        found.append(f"{ours * 1e3:.1f} | {ratio:.2f}")
    print(
        f"| {way.engine} | {way.weight_format} | {n_bytes / 1e6:.0f} | {loss:.2f} | {' | '.join(found)} |",
        flush=True,
    )


def cost(engine: Engine, tokens: list[int], n_new: int) -> float:
    """CPU seconds of the worker for each token of decoding, a full batch of different prompts."""
    batch = engine.settings.batch
    requests = [Request(tokens[i * 7 : i * 7 + PROMPT], n_new) for i in range(batch)]
    steps = [s for s in engine.generate(requests).steps if s.phase == "decode"]
    return sum(s.cpu_s for s in steps) / sum(s.produced for s in steps)


def perplexity(engine: Engine, tokens: list[int], windows: int) -> float:
    """Over windows that do not overlap, each predicted from its own first token on."""
    pairs = [(w[:1], w[1:]) for i in range(windows) if (w := tokens[i * WINDOW : (i + 1) * WINDOW])]
    scores, _ = engine.score(pairs)
    losses = [-value for values, _ in scores for value in values]
    return math.exp(statistics.fmean(losses))


def size(path: Path) -> int:
    """Bytes of the weights that the engine opens."""
    if path.is_file():
        return path.stat().st_size
    kinds = (".bin", ".data", ".onnx", ".safetensors")
    return sum(p.stat().st_size for p in path.iterdir() if p.suffix in kinds)


if __name__ == "__main__":
    main()
