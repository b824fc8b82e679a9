"""A real PostgreSQL server on loopback, started for the tests, beside SQLite in a temporary folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from running_server import serving

from negawatt.artifact import Artifact
from negawatt.serve.database import Database, DatabaseError


def programs() -> Path:
    """The folder of PostgreSQL's own programs; Debian's is not on the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    on_path = shutil.which("initdb")
    if not found and on_path is None:
        message = "PostgreSQL is not installed; apt-get install postgresql"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return found[-1] if found else Path(on_path or "").resolve().parent


CONFIG = """
intensity = "DE"

[[model]]
artifact = "minilm-l6"
name = "minilm"
batch = 8

[[model]]
artifact = "smollm2-135m-instruct"
name = "small"
batch = 4
max_context = 384
warm_up = false

[[model]]
artifact = "smollm2-135m-instruct"
name = "large"
batch = 2
max_context = 2048
warm_up = false
chat_template = "TEMPLATE"

[[cascade]]
name = "trusting"
small = "small"
large = "large"
threshold = -1000.0

[[cascade]]
name = "doubting"
small = "small"
large = "large"
threshold = 0.0

[[eco]]
name = "thrifty"
model = "large"
levels = [{above = 20, model = "small"}, {above = 5000, model = "large"}]
"""
TEMPLATE = """
{%- if tools %}
<|im_start|>system
You can call these functions: {{ tools | map(attribute="function") | list | tojson }}
You call one by writing <tool_call>
{"name": its name, "arguments": its arguments}
</tool_call><|im_end|>
{% endif %}
{% for message in messages %}
<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{{ {"name": call.function.name, "arguments": call.function.arguments} | tojson }}
</tool_call>
{%- endfor %}
<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""


@pytest.fixture(scope="session")
def address(model: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of several models, each of another kind; a module with one of its own overrides this."""
    folder = tmp_path_factory.mktemp("several")
    (folder / "template.jinja").write_text(TEMPLATE)
    (folder / "server.toml").write_text(CONFIG.replace("TEMPLATE", str(folder / "template.jinja")))
    with serving(folder, "--config", str(folder / "server.toml")) as (where, _):
        yield where


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of an empty server; it refuses to run as root, so there it runs as the user ``postgres``."""
    place = programs()
    user = "postgres" if os.getuid() == 0 else None
    folder = Path("/tmp") / f"negawatt-postgres-{uuid.uuid4().hex}"
    folder.mkdir(mode=0o700)
    if user:
        shutil.chown(folder, user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    password = folder / "password"
    password.write_text("correct-horse")
    password.chmod(0o644)
    initialised = subprocess.run(
        [
            *(place / "initdb", "-D", folder / "data", "-U", "tester", "-A", "scram-sha-256"),
            *(f"--pwfile={password}", "--no-sync", "--locale=C", "-E", "UTF8"),
        ],
        user=user,
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
    )
    assert initialised.returncode == 0, initialised.stderr
    with open(os.devnull, "wb") as nothing:
        process = subprocess.Popen(
            [
                *(place / "postgres", "-D", folder / "data", "-p", str(port), "-c", "fsync=off"),
                *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
            ],
            user=user,
            stdout=nothing,
            stderr=nothing,
            cwd="/",
        )
    url = f"postgresql://tester:correct-horse@127.0.0.1:{port}/postgres"
    try:
        for _ in range(200):
            try:
                Database(url).close()
                break
            except DatabaseError as exc:
                last = exc
                assert process.poll() is None, last
                process_wait(process)
        yield url
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder)


def process_wait(process: subprocess.Popen[bytes]) -> None:
    """A tenth of a second, or until it ends."""
    try:
        process.wait(0.1)
    except subprocess.TimeoutExpired:
        return


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty database of either kind."""
    if request.param == "sqlite":
        opened = Database(f"sqlite:///{tmp_path / 'serve.db'}")
        yield opened
        opened.close()
        return
    url = request.getfixturevalue("postgres")
    name = f"t{uuid.uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    opened = Database(url.rpartition("/")[0] + "/" + name)
    yield opened
    opened.close()
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
