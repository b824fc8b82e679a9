"""llama.cpp's own HTTP server, as its wheel comes. Arguments: the GGUF file, slots, threads.

Says its address on standard output, and ends when standard input does. Runs in the peer's own environment.
"""

import json
import os
import sys

import xllamacpp

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # libraries print what they like
slots, threads = int(sys.argv[2]), int(sys.argv[3])
parameters = xllamacpp.CommonParams()
parameters.model.path = sys.argv[1]
parameters.n_parallel = slots
parameters.n_ctx = 1024 * slots
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
parameters.hostnames = ["127.0.0.1"]
parameters.port = 0
server = xllamacpp.Server(parameters)
print(json.dumps({"address": server.listening_address}), file=answers, flush=True)
sys.stdin.read()
os._exit(0)
