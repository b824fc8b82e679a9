"""Low rank side by side: perplexity and CPU-seconds of each way, and what two factors are worth.

    .venv/bin/python benchmarks/compress_lowrank.py            quality
    .venv/bin/python benchmarks/compress_lowrank.py --speed    CPU-ms a token, dense against factored

Model, texts and windows are those of `compress_quantizers.py`: SmolLM2-135M-Instruct, whose weights come
out of a 4-bit file, judged on the Debian handbook and calibrated on Austen. For speed the dense and the
factored model take turns in every round, as in `compress_sparsity.py`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from compress_quantizers import in_a_process
from compress_sparsity import MODEL
from negawatt.artifact import Artifact
from negawatt.compress import Recipe, compress, parse
from negawatt.engine import Settings
from turns import show

SETTINGS = (("transformers", "fp32"), ("openvino", "f16"), ("openvino", "int8"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ratios", default="0.1,0.2", help="shares saved, comma-separated")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--batches", default="1,16", help="comma-separated")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "negawatt-texts")
    options = parser.parse_args()
    ratios = [float(each) for each in options.ratios.split(",")]
    if options.speed:
        speed(ratios, [int(each) for each in options.batches.split(",")], options.rounds)
    else:
        quality(ratios, options.work)


def quality(ratios: list[float], work: Path) -> None:
    print(f"{'technique':<34}{'perplexity':>10}{'ratio':>8}{'CPU-s':>8}{'peak MB':>9}")
    first = in_a_process("as it is", "-", work)["perplexity"]
    print(f"{'as it is':<34}{first:>10.2f}{1:>8.3f}", flush=True)
    for technique in (f"{name}:ratio={ratio:g}" for ratio in ratios for name in ("svd", "lowrank")):
        found = in_a_process(technique, "austen", work)
        print(
            f"{technique:<34}{found['perplexity']:>10.2f}{found['perplexity'] / first:>8.3f}"
            f"{found['cpu_s']:>8.0f}{found['peak_mb']:>9.0f}",
            flush=True,
        )


def speed(ratios: list[float], batches: list[int], rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text("The kettle hums before the house is awake. " * 100, "utf-8")
        dense = Artifact.open(Artifact.open(MODEL).checkpoint())  # the same precision on both sides
        print(f"{'CPU-ms a token, 1 thread':<34}{'dense':>9}{'factored':>11}{'ratio':>8}")
        for saved in ratios:
            made = Path(folder) / f"factored-{saved:g}"
            recipe = Recipe(MODEL, (parse(f"svd:ratio={saved:g}"),), str(text), heldout=1, length=128)
            compress(recipe, made, keep_worse=True)
            factored = Artifact.open(made)
            for engine, weights in SETTINGS:
                for batch in batches:
                    settings = Settings(engine=engine, weight_format=weights, threads=1, batch=batch)
                    ways = {"dense": (dense, settings), "factored": (factored, settings)}
                    show(f"{engine} {weights}, {saved:.0%} saved, batch {batch}", ways, rounds)


if __name__ == "__main__":
    main()
