"""Is smaller cheaper? Every engine's weight formats: bytes, perplexity, CPU time a token at batch 1 and 32.

    python benchmarks/engine_formats.py FOLDER onnxruntime
    python benchmarks/engine_formats.py FOLDER openvino:native,int8 llamacpp:q8_0

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

from negawatt.artifact import Artifact
from negawatt.engine import Engine, Request, Settings
from negawatt.engine.backends import backend
from texts import handbook

BASELINE = Settings(engine="transformers", weight_format="fp32", threads=1, max_context=640)
BATCHES = (1, 32)
TOKENS = {1: 24, 32: 12}
PROMPT = 16
WINDOW = 512


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the text is kept")
    parser.add_argument("ways", nargs="+", metavar="ENGINE[:FORMAT,…]", help="all formats without a name")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    model = Artifact.open(given.model)
    text = handbook(given.folder).read_text("utf-8")[200_000:600_000]
    tokens = model.tokenizer.encode(text[: max(given.windows, 2) * WINDOW * 8])
    print("| engine | weights | MB | perplexity | CPU ms/token, batch 1 | × fp32 | batch 32 | × fp32 |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    with ExitStack() as stack:
        bases = [stack.enter_context(Engine(model, BASELINE.replace(batch=b))) for b in BATCHES]
        for way in given.ways:
            engine, _, formats = way.partition(":")
            for weight_format in formats.split(",") if formats else backend(engine).weight_formats:
                candidate = BASELINE.replace(engine=engine, weight_format=weight_format)
                row(model, tokens, bases, candidate, given.windows, given.rounds)


def row(
    model: Artifact, tokens: list[int], bases: list[Engine], way: Settings, windows: int, rounds: int
) -> None:
    """One format: its size, its perplexity, and its cost beside the baseline's at each batch."""
    found, loss, n_bytes = [], math.nan, 0
    for base in bases:
        batch = base.settings.batch
        with Engine(model, way.replace(batch=batch)) as engine:
            for warmed in (base, engine):
                cost(warmed, tokens, 2)
            pairs = [[cost(e, tokens[n:], TOKENS[batch]) for e in (base, engine)] for n in range(rounds)]
            if batch == 1:
                loss, n_bytes = perplexity(engine, tokens, windows), size(engine.model_path)
        ours = statistics.median(candidate for _, candidate in pairs)
        ratio = statistics.median(candidate / baseline for baseline, candidate in pairs)
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
