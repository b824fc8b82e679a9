"""The loop every peer's meter runs: get ready, then obey lines of standard input until it closes.

``start`` and ``stop`` open and close a window; ``time N`` opens and closes N of them. Every line gets
one line of JSON. Runs in the peer's own environment, so it imports nothing of Negawatt.
"""

import json
import os
import sys
import time


def serve(get_ready):
    """``get_ready()`` imports the peer and returns (start, stop); stop returns what the peer reports."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print what they like
    begun = time.perf_counter()
    start, stop = get_ready()
    start()
    stop()
    print(json.dumps({"first_use_s": time.perf_counter() - begun}), file=answers, flush=True)
    for line in sys.stdin:
        word, _, count = line.partition(" ")
        if word.strip() == "time":
            took = []
            for _ in range(int(count)):
                at = time.perf_counter()
                start()
                stop()
                took.append(time.perf_counter() - at)
            answer = {"window_s": sorted(took)[len(took) // 2]}
        elif word.strip() == "start":
            start()
            answer = {}
        else:
            answer = stop()
        print(json.dumps(answer), file=answers, flush=True)
