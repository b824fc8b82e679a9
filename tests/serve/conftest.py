"""Databases of either kind: SQLite in a temporary folder, and a real PostgreSQL server on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from running_server import serving

from negawatt.artifact import Artifact
from negawatt.database import Database
from postgres_server import Server, emptied

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
def postgres(postgres_server: Server) -> str:
    """URL of an empty server."""
    return postgres_server.url


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty database of either kind."""
    if request.param == "sqlite":
        opened = Database(f"sqlite:///{tmp_path / 'serve.db'}")
        yield opened
        opened.close()
        return
    with emptied(request.getfixturevalue("postgres")) as url:
        opened = Database(url)
        yield opened
        opened.close()
