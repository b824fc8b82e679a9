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
import tempfile
from pathlib import Path

from compress_quantizers import in_a_process
from negawatt.artifact import Artifact
from negawatt.compress import Recipe, compress, parse
from negawatt.engine import Settings
from turns import show

TECHNIQUES = ("magnitude", "wanda", "sparsegpt")
MODEL = "smollm2-135m-instruct"
SETTINGS = (("transformers", "fp32"), ("transformers", "bf16"), ("openvino", "f16"), ("openvino", "int8"),
            ("llamacpp", "q8_0"))  # fmt: skip


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
        zeros = Artifact.open(sparse)
        print(f"{'CPU-ms a token, batch 1, 1 thread':<34}{'dense':>9}{'2:4 zeros':>11}{'ratio':>8}")
        for engine, weights in SETTINGS:
            settings = Settings(engine=engine, weight_format=weights, threads=1)
            show(f"{engine} {weights}", {"dense": (dense, settings), "zeros": (zeros, settings)}, rounds)


if __name__ == "__main__":
    main()
