"""What every compressing peer does alike: load, be timed, and be judged on the same windows.

Arguments: checkpoint folder, method, calibration windows, judged windows (``.npy``, token ids of shape
``(windows, length)``). Prints ``{"perplexity", "cpu_s", "peak_mb", "version"}``. Runs in the peer's own
environment, so it imports nothing of Negawatt.
"""

import importlib.metadata
import json
import os
import sys
import time

import numpy as np
import torch


def peak_mb():
    """Most memory of this process; ``getrusage`` would count what its parent held before it began."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


def perplexity(model, windows):
    """exp of the mean nats a predicted token, in fp32."""
    nats = []
    with torch.no_grad():
        for row in torch.from_numpy(windows):
            logits = model(input_ids=row[None]).logits[0, :-1].float()
            nats.append(torch.nn.functional.cross_entropy(logits, row[1:]).item())
    return float(np.exp(np.mean(nats)))


def compare(package, compress):
    """Run ``compress(folder, method, calibration) -> model`` and print what it took and gives."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print what they like
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    folder, method, calibration, windows = sys.argv[1:5]
    wall, cpu = time.perf_counter(), time.process_time()
    model = compress(folder, method, np.load(calibration))
    spent = {
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.perf_counter() - wall,
        "peak_mb": peak_mb(),
    }
    found = perplexity(model.eval(), np.load(windows))
    version = importlib.metadata.version(package)
    print(json.dumps({"perplexity": found, **spent, "version": version}), file=answers, flush=True)
