"""``hf:`` references, against a hub on loopback: only data files are fetched, never code or pickles."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

pytest.importorskip("huggingface_hub")

CONFIG = {"model_type": "bert", "hidden_size": 4, "num_attention_heads": 2, "num_hidden_layers": 1,
          "intermediate_size": 8, "vocab_size": 8, "max_position_embeddings": 16}  # fmt: skip
FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "model.safetensors": save({"embeddings.weight": np.ones((8, 4), np.float32)}),
    "pytorch_model.bin": b"\x80\x04pickle",
    "modeling_evil.py": b"raise SystemExit('ran')",
}
COMMIT = "a" * 40


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    """Address of a hub that has one model, ``org/tiny``, and the paths that were asked of it."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            asked.append(path)
            name = path.rpartition("/")[2]
            if path.startswith("/api/models/org/tiny/revision/"):
                listed = [{"rfilename": n} for n in FILES]
                self._answer(json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": listed}).encode())
            elif path.startswith("/api/models/org/tiny/tree/"):
                rows = [
                    {"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in FILES.items()
                ]
                self._answer(json.dumps(rows).encode())
            elif path.startswith("/org/tiny/resolve/") and name in FILES:
                self._answer(FILES[name])
            else:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.send_header("X-Error-Code", "RepoNotFound")
                self.end_headers()

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


def open_it(ref: str, endpoint: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """``Artifact.open(ref)`` in a process of its own: the hub library reads its settings on import."""
    script = (
        "import sys\n"
        "from negawatt import Artifact, NegawattError\n"
        "try:\n"
        "    model = Artifact.open(sys.argv[1])\n"
        "    names = sorted(p.name for p in model.path.iterdir())\n"
        "    print(model.name, model.source, model.shape.n_params, *names)\n"
        "except NegawattError as exc:\n"
        "    print(type(exc).__name__, exc)\n"
    )
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "0",
        "NEGAWATT_HOME": str(home),
        "HF_HOME": str(home),
    }
    return subprocess.run(
        [sys.executable, "-c", script, ref],
        env=os.environ | settings | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )


def test_only_data_files_are_fetched(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, asked = hub
    done = open_it("hf:org/tiny", endpoint, tmp_path)
    assert done.stdout.split() == [
        "org/tiny", "hf:org/tiny", "32", ".cache", "config.json", "model.safetensors",
    ]  # fmt: skip
    assert not [path for path in asked if path.endswith((".bin", ".py"))]

    again = open_it("hf:org/tiny", "http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1")
    assert again.stdout == done.stdout, "what was fetched opens without a network"


def test_the_pull_command_takes_models_of_the_hub_too(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    script = "from negawatt.cli import main; main()"
    settings = {"HF_ENDPOINT": hub[0], "HF_HUB_OFFLINE": "0", "NEGAWATT_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script, "models", "pull", "hf:org/tiny", "--json"],
        env=os.environ | settings | {"HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    (fetched,) = json.loads(done.stdout)
    assert fetched["name"] == "hf:org/tiny"
    assert (Path(fetched["path"]) / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_what_the_hub_does_not_have(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    done = open_it("hf:org/absent", hub[0], tmp_path)
    assert done.stdout.startswith("DownloadError cannot fetch org/absent from the hub: ")
    assert done.stdout.count("\n") == 1


def test_a_dead_network(tmp_path: Path) -> None:
    done = open_it("hf:org/tiny", "http://127.0.0.1:9", tmp_path)
    assert done.stdout.startswith("DownloadError cannot fetch org/tiny from the hub: ")
    assert done.stdout.count("\n") == 1
