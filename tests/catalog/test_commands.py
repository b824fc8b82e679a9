"""``negawatt models``, ``data`` and ``engines``, called as a user calls them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from registry import File, Registry, registry, wheel, write_catalog

from negawatt import catalog
from negawatt.artifact import Artifact
from negawatt.cli import main
from negawatt.cli.catalogue import size

__all__ = ["registry"]  # the fixture

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run ``negawatt …`` in this process: (exit code, standard output, standard error)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["negawatt", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def test_lists_say_what_is_here(call: Call, model: Artifact) -> None:
    code, out, err = call("models", "list", "--json")
    assert (code, err) == (0, "")
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows.keys() == {e.name for e in catalog.entries("model")}
    here = rows["smollm2-135m-instruct"]
    assert here["path"] == str(model.path)
    assert here["license"] == "Apache-2.0"
    _, out, _ = call("models", "list")
    line = next(line for line in out.splitlines() if line.startswith("smollm2"))
    assert line.split()[1:4] == ["yes", "98", "MB"]


def test_show_without_pulling(call: Call, fresh_home: Path) -> None:
    code, out, _ = call("data", "show", "piqa")
    assert code == 0
    assert "no; negawatt data pull piqa" in out
    assert catalog.entry("piqa").files[0].sha256 in out
    code, out, _ = call("models", "show", "gemma-3-270m", "--json")
    shown = json.loads(out)
    assert (shown["needs_consent"], shown["path"]) == (True, None)
    assert not fresh_home.exists()


def test_show_a_model_of_ones_own(call: Call, model: Artifact) -> None:
    code, out, _ = call("models", "show", str(model.gguf()), "--json")
    shown = json.loads(out)
    assert code == 0
    assert (shown["formats"], shown["sha256"], shown["shape"]["n_layers"]) == (["gguf"], model.sha256, 30)
    _, out, _ = call("models", "show", str(model.gguf()))
    assert "n_layers          30" in out


def test_pull_speaks_json_and_is_quiet_elsewhere(call: Call, fresh_home: Path, registry: Registry) -> None:
    content = wheel("thing", {"thing/data": b"data"})
    registry.files["thing-1.0-py3-none-any.whl"] = content
    packages = {"thing-1.0-py3-none-any.whl": ("pypi", "thing", content)}
    write_catalog(fresh_home, "thing", packages, [File("data", ["thing/data"], b"data")], needs_consent=True)

    code, out, err = call("data", "pull", "thing")
    assert (code, out) == (1, "")
    assert "thing: MIT" in err
    assert "add --accept-license" in err

    code, out, _ = call("data", "pull", "thing", "--accept-license", "--json")
    assert code == 0
    assert json.loads(out)[0]["path"] == str(fresh_home / "data" / "thing")
    code, out, _ = call("data", "pull", "thing")
    assert (code, out) == (0, f"thing is in {fresh_home / 'data' / 'thing'}\n")


def test_a_kind_is_not_pulled_as_another(call: Call, fresh_home: Path) -> None:
    code, out, err = call("models", "pull", "piqa")
    assert (code, out) == (2, "")
    assert "no model called 'piqa'" in err


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1_500, "1.5 kB"), (92_871_040, "93 MB"), (2.4e12, "2400 GB")],
)
def test_sizes_for_people(n_bytes: float, text: str) -> None:
    assert size(n_bytes) == text
