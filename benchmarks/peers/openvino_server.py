"""OpenVINO GenAI's continuous batching behind the least HTTP there can be.

Arguments: the GGUF file, slots, threads.
Says its address on standard output, and ends when standard input does. Runs in the peer's own environment.

The library has no HTTP server of its own (its server product is another program, in C++). This front reads
one request a connection, hands it to `ContinuousBatchingPipeline` and writes what every step of that has
given, all in the main thread; the pipeline steps in another one, so the kernel counts the two apart.
"""

import asyncio
import json
import os
import sys
import tempfile
import threading
from pathlib import Path

import openvino_genai

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # libraries print what they like


def opened(file, slots, threads):
    """The pipeline on the file's weights, which OpenVINO GenAI itself turns into its own form."""
    folder = Path(tempfile.mkdtemp(prefix="openvino-"))
    (folder / "model.gguf").symlink_to(Path(file).resolve())
    openvino_genai.LLMPipeline(str(folder / "model.gguf"), "CPU", enable_save_ov_model=True)
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_seqs = slots
    scheduler.cache_size = 1  # GB
    properties = {"INFERENCE_NUM_THREADS": threads}
    return openvino_genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", properties)


class Front:
    def __init__(self, pipeline):
        self.pipeline, self.tokenizer = pipeline, pipeline.get_tokenizer()
        self.active, self.number = {}, 0
        self.work = threading.Event()
        self.loop = asyncio.get_running_loop()
        threading.Thread(target=self.step, daemon=True).start()

    def step(self):
        while True:
            self.work.wait()
            self.work.clear()
            while self.pipeline.has_non_finished_requests():
                self.pipeline.step()
                self.loop.call_soon_threadsafe(self.hand_out)
            self.loop.call_soon_threadsafe(self.hand_out)

    def hand_out(self):
        for number, (handle, writer, left) in list(self.active.items()):
            while left and handle.can_read():
                [output] = handle.read().values()
                ids = list(output.generated_ids)
                left -= len(ids)
                text = self.tokenizer.decode(ids)
                self.tell(writer, {"choices": [{"index": 0, "text": text, "finish_reason": None}]})
            self.active[number] = handle, writer, left
            if not left:
                del self.active[number]
                writer.write(b"data: [DONE]\n\n")
                writer.close()

    def tell(self, writer, event):
        writer.write(b"data: " + json.dumps(event).encode() + b"\n\n")

    async def ask(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = next(int(line[15:]) for line in head.split("\r\n") if line.startswith("content-length:"))
        asked = json.loads(await reader.readexactly(length))
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.apply_chat_template = (
            asked["max_tokens"],
            True,
            False,
        )
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        self.number += 1
        handle = self.pipeline.add_request(self.number, asked["prompt"], config)
        self.active[self.number] = handle, writer, asked["max_tokens"]
        self.work.set()


async def main():
    front = Front(opened(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
    server = await asyncio.start_server(front.ask, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    print(json.dumps({"address": f"http://127.0.0.1:{port}"}), file=answers, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    os._exit(0)


asyncio.run(main())
