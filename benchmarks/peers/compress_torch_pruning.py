"""Torch-Pruning: channels of the feed-forward parts by first-order Taylor importance, as a plain checkpoint.

Arguments: checkpoint folder, channels left in each layer, calibration windows (``.npy``), output folder.
Prints ``{"cpu_s", "version"}``. Runs in the peer's own environment, so it imports nothing of Negawatt.
"""

import importlib.metadata
import json
import os
import sys
import time

import numpy as np
import torch
import torch_pruning as tp
from transformers import AutoModelForCausalLM, AutoTokenizer

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # libraries print what they like
folder, left, calibration, output = sys.argv[1:5]
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
began = time.process_time()
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
model.config.use_cache = False
windows = torch.from_numpy(np.load(calibration))
for row in windows:
    (model(input_ids=row[None], labels=row[None]).loss / len(windows)).backward()
graph = tp.DependencyGraph().build_dependency(
    model, example_inputs=windows[:1, :16], output_transform=lambda found: found.logits
)
importance = tp.importance.GroupTaylorImportance()
for layer in model.model.layers:
    gate = layer.mlp.gate_proj
    every = list(range(gate.out_features))
    scores = importance(graph.get_pruning_group(gate, tp.prune_linear_out_channels, idxs=every))
    gone = scores.argsort()[: gate.out_features - int(left)].tolist()
    graph.get_pruning_group(gate, tp.prune_linear_out_channels, idxs=gone).prune()
model.zero_grad()
model.config.intermediate_size = int(left)
model.save_pretrained(output)
AutoTokenizer.from_pretrained(folder).save_pretrained(output)
spent = {"cpu_s": time.process_time() - began, "version": importlib.metadata.version("torch-pruning")}
print(json.dumps(spent), file=answers, flush=True)
