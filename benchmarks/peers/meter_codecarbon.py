"""CodeCarbon's task windows, opened and closed by lines of standard input.

``start`` and ``stop`` each answer one line of JSON; ``stop`` with the kWh that the window is given.
Runs in CodeCarbon's own environment, so it imports nothing of Negawatt.
"""

import json
import os
import sys
import time


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print what they like
    begun = time.perf_counter()
    from codecarbon import OfflineEmissionsTracker

    imported = time.perf_counter()
    tracker = OfflineEmissionsTracker(country_iso_code="DEU", save_to_file=False, log_level="error")
    tracker.start_task("first")
    tracker.stop_task("first")
    ready = time.perf_counter()
    print(json.dumps({"import_s": imported - begun, "start_s": ready - imported}), file=answers, flush=True)
    number = 0
    for line in sys.stdin:
        if line.strip() == "start":
            number += 1
            tracker.start_task(f"task {number}")
            answer = {}
        else:
            data = tracker.stop_task(f"task {number}")
            answer = {
                "energy_j": data.energy_consumed * 3.6e6,
                "cpu_j": data.cpu_energy * 3.6e6,
                "ram_j": data.ram_energy * 3.6e6,
                "gpu_j": data.gpu_energy * 3.6e6,
                "duration_s": data.duration,
            }
        print(json.dumps(answer), file=answers, flush=True)


main()
