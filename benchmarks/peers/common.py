"""The loop every peer runs: load once, then answer lines of standard input until it closes.

A line is ``{"prompts": [text, …], "new_tokens": n}``; the answer is what generating cost this process.
Runs in the peer's own environment, so it imports nothing of Negawatt.
"""

import json
import os
import resource
import sys
import time


def serve(generate, score=None):
    """Call ``generate(prompts, new_tokens) -> tokens generated`` for each line, and time it.

    A line ``{"score": pairs}`` is answered by ``{"log_probs": score(pairs)}`` and its seconds.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print what they like
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        wall, cpu = time.perf_counter(), time.process_time()
        if "score" in asked:
            found = {"log_probs": score(asked["score"])}
        else:
            found = {"tokens": generate(asked["prompts"], asked["new_tokens"])}
        spent = {
            "cpu_s": time.process_time() - cpu,
            "wall_s": time.perf_counter() - wall,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        print(json.dumps(found | spent), file=answers, flush=True)
