"""What Olive made, as ONNX Runtime GenAI runs it. Arguments: its folder, and threads (0 for the default).

Beside the prompts of `common`, it is asked for log-probabilities: ``{"score": [[context, continuation], …]}``
with tokens, answered by those of the continuation.
"""

import json
import sys
import tempfile
from pathlib import Path

import common
import numpy as np
import onnxruntime
import onnxruntime_genai as genai

folder, threads = Path(sys.argv[1]), int(sys.argv[2])


def configured() -> str:
    """A folder that differs in the number of threads only."""
    if not threads:
        return str(folder)
    copy = Path(tempfile.mkdtemp())
    for file in folder.iterdir():
        (copy / file.name).symlink_to(file.resolve())
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
    (copy / "genai_config.json").unlink()
    (copy / "genai_config.json").write_text(json.dumps(config))
    return str(copy)


model = genai.Model(configured())
tokenizer = genai.Tokenizer(model)
sessions = []


def generate(prompts, new_tokens):
    total = 0
    for prompt in prompts:
        tokens = tokenizer.encode(prompt)
        parameters = genai.GeneratorParams(model)
        length = len(tokens) + new_tokens
        parameters.set_search_options(do_sample=False, min_length=length, max_length=length)
        generator = genai.Generator(model, parameters)
        generator.append_tokens(tokens)
        while not generator.is_done():
            generator.generate_next_token()
            total += 1
    return total


def score(pairs):
    if not sessions:
        sessions.append(onnxruntime.InferenceSession(str(folder / "model.onnx")))
    (session,) = sessions
    empty = {}
    for given in session.get_inputs():
        if given.name.startswith("past"):
            _, heads, _, width = given.shape
            empty[given.name] = np.zeros((1, heads, 0, width), np.float32)
    found = []
    for context, continuation in pairs:
        tokens = np.array([context + continuation[:-1]], np.int64)
        fed = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), **empty}
        (logits,) = session.run(["logits"], fed)
        rows = logits[0, len(context) - 1 :].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
        found.append([float(row[token]) for row, token in zip(rows, continuation, strict=True)])
    return found


common.serve(generate, score)
