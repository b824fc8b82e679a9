"""perun's regions, timed under ``perun monitor``: prints the median seconds of one."""

import sys
import time

from perun import monitor


@monitor("region")
def nothing():
    pass


took = []
for _ in range(int(sys.argv[1])):
    at = time.perf_counter()
    nothing()
    took.append(time.perf_counter() - at)
print("window_s", sorted(took)[len(took) // 2])
