"""Low rank side by side: perplexity and CPU-seconds of each way, and what two factors are worth.

    .venv/bin/python benchmarks/compress_lowrank.py            quality
    .venv/bin/python benchmarks/compress_lowrank.py --speed    CPU-ms a token, dense against factored

Model, texts and windows are those of `compress_quantizers.py`: SmolLM2-135M-Instruct, whose weights come
out of a 4-bit file, judged on the Debian handbook and calibrated on Austen. For speed the dense and the
factored model take turns in every round, as in `compress_sparsity.py`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from compress_quantizers import in_a_process
from compress_sparsity import MODEL, in_turns
from negawatt.artifact import Artifact
from negawatt.compress import Recipe, compress, parse
from negawatt.errors import NegawattError

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
        print(
            f"{'engine':<20}{'saved':>6}{'batch':>6}{'dense':>9}{'factored':>10}{'ratio':>8}   CPU-ms a token"
        )
        for saved in ratios:
            made = Path(folder) / f"factored-{saved:g}"
            recipe = Recipe(MODEL, (parse(f"svd:ratio={saved:g}"),), str(text), heldout=1, length=128)
            compress(recipe, made, keep_worse=True)
            models = {"dense": dense, "factored": Artifact.open(made)}
            for engine, weights in SETTINGS:
                for batch in batches:
                    try:
                        base, split = in_turns(engine, weights, models, rounds, batch).values()
                    except NegawattError as exc:
                        print(f"{engine + ' ' + weights:<20}{exc}", flush=True)
                        continue
                    shares = sorted(b / a for a, b in zip(base, split, strict=True))
                    middle = [statistics.median(each) for each in (base, split, shares)]
                    print(
                        f"{engine + ' ' + weights:<20}{saved:>6.0%}{batch:>6}{middle[0]:>9.2f}"
                        f"{middle[1]:>10.2f}{middle[2]:>8.3f}   ({shares[0]:.3f}–{shares[-1]:.3f})",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
