"""Precisions of the key-value cache: what each loses, and what a token costs behind a long prompt.

    .venv/bin/python benchmarks/kv_cache.py
    .venv/bin/python benchmarks/kv_cache.py --engines openvino --batches 16 --prompt 512

SmolLM2-135M-Instruct as the engine runs its file. Quality is what ``negawatt compress --kv-cache`` measures,
on windows of the Debian handbook; for the cost all precisions of an engine take turns on a batch of prompts.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import texts
from negawatt.artifact import Artifact
from negawatt.compress.calibration import calibration
from negawatt.compress.kv_cache import DECODED_TOKENS, PROMPT_TOKENS, caches_of, compared
from negawatt.compress.source import Source
from negawatt.engine import Settings
from turns import in_turns, phase_ms, row

MODEL = "smollm2-135m-instruct"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engines", default="llamacpp,openvino", help="comma-separated")
    parser.add_argument("--batches", default="1,8", help="comma-separated")
    parser.add_argument("--prompt", type=int, default=1024, help="tokens before the first that is counted")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "negawatt-texts")
    options = parser.parse_args()
    artifact, text = Artifact.open(MODEL), texts.handbook(options.work)
    windows = calibration(
        Source.of(artifact), str(text), windows=0, heldout=8, length=PROMPT_TOKENS + DECODED_TOKENS, seed=0,
        progress=lambda done, total, what: None,
    ).heldout  # fmt: skip
    for engine in options.engines.split(","):
        settings = Settings(engine=engine, threads=1)
        found = compared(artifact, windows, settings)
        for each in found["caches"]:
            print(
                f"{engine} {each['kv_cache']:<6}holds {each['holds'] or 'the same':<9}"
                f"{each['kl']:>9.5f} nats (at most {each['kl_high']:.5f}), perplexity "
                f"{each['perplexity']:.3f}, {each['top1_match']:.1%} the same"
            )
        print(
            f"recommended: {found['recommended']}; CPU-ms a token decoded, {' / '.join(caches_of(settings))}:"
        )
        for batch in map(int, options.batches.split(",")):
            ways = {
                name: (artifact, settings.replace(kv_cache=name, batch=batch)) for name in caches_of(settings)
            }
            turns = in_turns(ways, options.rounds, prompt_tokens=options.prompt, new_tokens=32)
            costs = ([phase_ms("decode")(w) for w in each] for each in turns.values())
            print(row(f"{engine}, {options.prompt} tokens before, batch {batch}", *costs), flush=True)


if __name__ == "__main__":
    main()
