"""One of the jobs that every meter is shown: ``one-core``, ``generating`` or ``waiting``, for some seconds.

    meter_job.py KIND SECONDS PYTHON THIS

PYTHON has Negawatt and its engines, which generating needs; a peer may run this script, THIS file, by
another and under another name.
"""

import os
import subprocess
import sys
import tempfile
import time


def spin(until):
    while time.monotonic() < until:
        sum(range(10_000))


def wait(until):
    """Sleep, and write a megabyte to disk five times a second."""
    with tempfile.TemporaryFile() as file:
        while time.monotonic() < until:
            file.seek(0)
            file.write(os.urandom(1 << 20))
            file.flush()
            os.fsync(file.fileno())
            time.sleep(0.2)


def generate(until):
    """SmolLM2-135M by transformers in fp32, one answer of 32 tokens after the other, loading included."""
    from negawatt import Artifact, Engine, Settings
    from negawatt.engine import Request

    model = Artifact.open("smollm2-135m-instruct")
    prompt = model.tokenizer.chat([{"role": "user", "content": "Why is the sky blue?"}])
    tokens = 0
    with Engine(model, Settings(engine="transformers", weight_format="fp32")) as engine:
        while time.monotonic() < until:
            answer = engine.generate([Request(prompt, max_new_tokens=32)])
            tokens += len(answer.completions[0].tokens)
    print(f"{tokens} tokens")


def main(kind, seconds, python, this):
    until = time.monotonic() + float(seconds)
    if kind != "generating":
        {"one-core": spin, "waiting": wait}[kind](until)
    elif sys.executable == python:
        generate(until)
    else:
        subprocess.run([python, this, kind, seconds, python, this], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
