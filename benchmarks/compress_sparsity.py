"""Sparsity side by side: perplexity, CPU-seconds and memory of each way, and what the zeros are worth.

    .venv/bin/python benchmarks/compress_sparsity.py            quality
    .venv/bin/python benchmarks/compress_sparsity.py --speed    CPU-ms a token, dense against half zero

Model, texts and windows are those of `compress_quantizers.py`: SmolLM2-135M-Instruct, whose weights come
out of a 4-bit file, judged on the Debian handbook and calibrated on Austen. llm-compressor 0.14 gave in
this setting: Wanda 50 % perplexity 61.63 in 258 CPU-seconds, SparseGPT 50 % 66.08 in 560.

For speed a dense model and the same model with half of its weights zero take turns in every round, the
first of them rotating; figures are medians over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

from compress_quantizers import in_a_process
from negawatt.artifact import Artifact
from negawatt.compress import Recipe, compress, parse
from negawatt.engine import Engine, Request, Settings
from negawatt.errors import NegawattError

TECHNIQUES = ("magnitude", "wanda", "sparsegpt")
MODEL = "smollm2-135m-instruct"
SETTINGS = (("transformers", "fp32"), ("transformers", "bf16"), ("openvino", "f16"), ("openvino", "int8"),
            ("llamacpp", "q8_0"))  # fmt: skip
NEW_TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="only techniques whose name begins so")
    parser.add_argument("--patterns", default="free,2:4", help="comma-separated")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "negawatt-texts")
    options = parser.parse_args()
    if options.speed:
        speed(options.rounds)
    else:
        quality(options.only, options.patterns.split(","), options.work)


def quality(only: str, patterns: list[str], work: Path) -> None:
    print(f"{'technique':<34}{'perplexity':>10}{'ratio':>8}{'CPU-s':>8}{'peak MB':>9}")
    first = in_a_process("as it is", "-", work)["perplexity"]
    print(f"{'as it is':<34}{first:>10.2f}{1:>8.3f}", flush=True)
    for pattern in patterns:
        for technique in TECHNIQUES:
            if technique.startswith(only):
                text = f"{technique}:ratio=0.5,pattern={pattern}"
                found = in_a_process(text, "austen", work)
                print(
                    f"{text:<34}{found['perplexity']:>10.2f}{found['perplexity'] / first:>8.3f}"
                    f"{found['cpu_s']:>8.0f}{found['peak_mb']:>9.0f}",
                    flush=True,
                )


def speed(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sparse, text = Path(folder) / "sparse", Path(folder) / "text.txt"
        text.write_text("The kettle hums before the house is awake. " * 100, "utf-8")
        recipe = Recipe(MODEL, (parse("magnitude:pattern=2:4"),), str(text), heldout=1, length=128)
        compress(recipe, sparse, keep_worse=True)
        dense = Artifact.open(Artifact.open(MODEL).checkpoint())  # the same precision on both sides
        models = {"dense": dense, "2:4 zeros": Artifact.open(sparse)}
        print(f"{'engine':<20}{'dense':>9}{'2:4 zeros':>11}{'ratio':>8}   CPU-ms a token, batch 1, 1 thread")
        for engine, weights in SETTINGS:
            try:
                base, zeros = in_turns(engine, weights, models, rounds).values()
            except NegawattError as exc:
                print(f"{engine + ' ' + weights:<20}{exc}", flush=True)
                continue
            ratios = sorted(b / a for a, b in zip(base, zeros, strict=True))
            middle = [statistics.median(each) for each in (base, zeros, ratios)]
            print(
                f"{engine + ' ' + weights:<20}{middle[0]:>9.2f}{middle[1]:>11.2f}{middle[2]:>8.3f}"
                f"   ({ratios[0]:.3f}–{ratios[-1]:.3f})",
                flush=True,
            )


def in_turns(
    engine: str, weights: str, models: dict[str, Artifact], rounds: int, batch: int = 1
) -> dict[str, list[float]]:
    """CPU-ms a generated token of each model, one figure a round."""
    settings = Settings(engine=engine, weight_format=weights, threads=1, batch=batch)
    found: dict[str, list[float]] = {name: [] for name in models}
    with ExitStack() as stack:
        opened = {name: stack.enter_context(Engine(each, settings)) for name, each in models.items()}
        for number in range(-1, rounds):  # the first warms up
            for name in sorted(models, reverse=bool(number % 2)):
                tokens = models[name].tokenizer.encode("The history of the lighthouse begins")
                usage = opened[name].generate([Request(tokens, NEW_TOKENS)] * batch).usage
                if number >= 0:
                    found[name].append(1000 * usage.cpu_s / (NEW_TOKENS * batch))
    return found


if __name__ == "__main__":
    main()
