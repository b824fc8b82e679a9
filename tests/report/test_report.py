"""Reports of every shape of run: what they say, and that nothing in a run can break or abuse them."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import synthetic
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from negawatt.cli.report import command
from negawatt.errors import NegawattError, RunError, UsageError
from negawatt.report import FORMATS, plot_svg, render, write
from negawatt.report.answer import spoken
from negawatt.report.facts import Facts
from negawatt.report.points import frontier, points
from negawatt.report.records import Drop, label, way
from negawatt.run import Run

HOSTILE = "<script>alert(1)</script>\"'&`|</title><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """The tags and text of a page, as a browser's parser sees them."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


@pytest.fixture
def tune_run(tmp_path: Path) -> Path:
    return synthetic.tune_run(tmp_path / "tune")


SHAPES: dict[str, Callable[[Path], Path]] = {
    "finished": synthetic.tune_run,
    "killed": lambda path: synthetic.tune_run(path, finished=False),
    "keep": lambda path: synthetic.tune_run(path, accepted=False),
    "profile": synthetic.profile_run,
    "bare": lambda path: Run.create("tune", path=path).path,
    "bare profile": lambda path: Run.create("profile", path=path).path,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format", FORMATS)
def test_every_shape_renders_in_every_format(shape: str, format: str, tmp_path: Path) -> None:
    report = render(SHAPES[shape](tmp_path / "run"), format)
    if format == "json":
        answer = json.loads(report)["answer"]
        assert answer["headline"]
    else:
        assert (
            "Unfinished" in report
            if shape in ("killed", "bare", "bare profile")
            else "Unfinished" not in report
        )


def test_the_verdict_comes_first_with_its_intervals(tune_run: Path) -> None:
    text = Page(render(tune_run)).text
    start = text.index("Run llamacpp with q4_0 weights, 1 thread")
    for later in (
        "79 % (78–80)",
        "no difference shown",
        "at most 0.74 points",
        "~3.9 kJ (1.6–6.6)",
        "53,000 tokens",
    ):
        assert start < text.index(later) < text.index("Every trial")


def test_keeping_what_you_have_is_an_answer(tmp_path: Path) -> None:
    text = Page(render(synthetic.tune_run(tmp_path / "run", accepted=False))).text
    assert "Keep what you have." in text
    assert "no difference shown: 2.0 % (−1.0–5.0)" in text
    assert "less energy per token." not in text


@pytest.mark.parametrize("format", FORMATS)
def test_all_formats_carry_the_same_facts(format: str, tune_run: Path) -> None:
    report = render(tune_run, format)
    report = Page(report).text if format == "html" else report.replace("\\", "")
    facts = Facts.read(tune_run)
    assert len(facts.trials) == 25
    for trial in facts.trials:
        assert not trial.reason or trial.reason in report
    for fact in (
        "b179c9523d0e",
        "5.23.0",
        "b6900",
        "another process used 38 %",
        "steal time 4 %",
        "already rounded",
    ):
        assert fact in report
    assert "the counter did not move" in report


def test_a_missing_energy_is_said_and_never_zero(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with Run.create("tune", path=path) as run:
        joules = {
            "value_j": None,
            "low_j": None,
            "high_j": None,
            "provenance": "missing",
            "reason": "no sensor",
        }
        for i, cpu_s in enumerate((0.09, 0.03)):
            run.append("trial", {
                "number": i, "settings": {"engine": f"e{i}"}, "state": "complete", "stage": "search",
                "energy_per_token": joules, "cpu_s_per_token": cpu_s,
                "quality": {"metric": "perplexity", "value": 20.0 + i, "low": None, "high": None, "n": 5},
            })  # fmt: skip
    page = Page(render(path)).text
    assert "Energy is not measured (no sensor), so the plot counts CPU time." in page
    assert "0 J" not in page
    assert "CPU time per token: 30 ms" in page.replace("\xa0", " ")


def test_names_are_untrusted(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "artifact": {"name": HOSTILE, "source": HOSTILE, "notes": [HOSTILE]},
        "workload": {"name": HOSTILE, "hash": HOSTILE},
        "command": ["negawatt", HOSTILE],
        "created": HOSTILE,
        "machine": {HOSTILE: HOSTILE},
        "sensors": [{"name": HOSTILE, "status": HOSTILE, "reason": HOSTILE}, HOSTILE],
        "versions": {HOSTILE: HOSTILE},
        "baseline": {"engine": HOSTILE, "weight_format": HOSTILE, HOSTILE: HOSTILE},
    }
    path = synthetic.tune_run(tmp_path / "run", finished=False, **changes)
    with Run.open(path) as run:
        run.append("note", {"text": HOSTILE})
        settings_ = {"engine": HOSTILE, "threads": HOSTILE}
        run.append("trial", {"number": 99, "settings": settings_, "state": HOSTILE, "stage": HOSTILE,
                             "reason": HOSTILE, "warnings": [HOSTILE]})  # fmt: skip
    clean = Page(render(synthetic.tune_run(tmp_path / "clean", finished=False)))
    page = Page(render(path))
    for tag in ("script", "style", "img", "meta", "body"):
        assert sum(t == tag for t, _ in page.tags) == sum(t == tag for t, _ in clean.tags), tag
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "alert(1)" in page.text
    markdown = render(path, "markdown")
    outside_code = [line for line in markdown.splitlines() if not line.startswith("    ")]
    assert not [line for line in outside_code if "<" in line]
    assert json.loads(render(path, "json"))["manifest"]["artifact"]["name"] == HOSTILE
    for drawing in re.findall(r"<svg.*?</svg>", render(path), re.S):
        ElementTree.fromstring(drawing)


def test_the_page_is_self_contained_and_its_policy_names_its_own_code(tune_run: Path) -> None:
    source = render(tune_run)
    page = Page(source)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert "src" not in attributes
        assert "style" not in attributes, "an inline style would be refused by the policy"
        assert (attributes.get("href") or "#").startswith("#")
    assert "url(" not in source
    assert "@import" not in source
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    for tag in ("style", "script"):
        body = re.search(f"<{tag}>(.*?)</{tag}>", source, re.S)
        assert body is not None
        digest = base64.b64encode(hashlib.sha256(body[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_links_of_the_plot_lead_to_rows(tune_run: Path) -> None:
    tags = Page(render(tune_run)).tags
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {(a["href"] or "")[1:] for t, a in tags if t == "a"}
    assert targets <= set(ids)
    assert {f"trial-{i}" for i in range(25)} <= targets, "a trial has no point on the plot"


def test_the_plot_alone_is_a_document(tune_run: Path) -> None:
    root = ElementTree.fromstring(plot_svg(tune_run))
    marks = [e for e in root.iter() if (e.get("class") or "").startswith("pt ")]
    assert len(marks) == 25
    assert "prefers-color-scheme: dark" in plot_svg(tune_run)


def test_a_run_without_points_has_no_plot(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no trial in it has both"):
        plot_svg(synthetic.profile_run(tmp_path / "run"))


@given(seed=st.integers(0, 10_000), finished=st.booleans())
@settings(max_examples=10, deadline=None)
def test_nothing_beats_the_frontier(
    seed: int, finished: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    facts = Facts.read(
        synthetic.tune_run(tmp_path_factory.mktemp("runs") / "run", seed=seed, finished=finished)
    )
    found = points(facts)
    front = frontier(facts, found)
    assert front
    costs = [(p.x.value, -p.y.value) for p in front if p.x and p.y]
    assert costs == sorted(costs)
    assert [q for _, q in costs] == sorted((q for _, q in costs), reverse=True), "quality must rise with cost"


def test_the_frontier_passes_through_what_is_recommended(tune_run: Path) -> None:
    """The search judges on few items, the final on many: the run's own frontier may lack its winner."""
    file = tune_run / "result.json"
    result = json.loads(file.read_text())
    result["frontier"] = [f for f in result["frontier"] if f["settings"] != result["best"]["settings"]]
    file.write_text(json.dumps(result))
    facts = Facts.read(tune_run)
    assert "best" in [p.kind for p in frontier(facts, points(facts))]


def test_a_gain_in_quality_is_no_drop() -> None:
    """Differences are recorded as candidate − baseline; a drop counts the other way."""
    drop = Drop.read({"mean": -0.02, "low": -0.03, "high": -0.01, "drop": 0.02, "upper_one_sided": 0.028})
    assert drop == Drop(0.02, 0.01, 0.03, 0.028)


@pytest.mark.parametrize(
    "told",
    [{"speculation": "draft /models/small:q4_0"}, {"speculation": "draft", "draft": "/models/small:q4_0"}],
)
def test_what_proposes_is_named_however_it_was_recorded(told: dict[str, str]) -> None:
    settings = way({"settings": {"engine": "llamacpp", "weight_format": "f16", "threads": 1, **told}})
    said = label(settings).replace("\N{NO-BREAK SPACE}", " ")
    assert said == "llamacpp · f16 · 1 thread · batch 1 · small:q4_0 draft"
    assert spoken(settings).endswith("batch 1, proposals by small:q4_0")


def test_trials_without_a_pair_are_compared_by_their_drift_free_cost(tune_run: Path) -> None:
    trials = Facts.read(tune_run).trials
    assert trials[1].ratio is not None
    assert trials[1].drift_free_cost is not None
    assert trials[0].drift_free_cost is not None
    assert trials[1].ratio.value == trials[0].drift_free_cost / trials[1].drift_free_cost
    assert trials[1].ratio.low is None


def test_parts_of_both_ends_become_a_waterfall(tune_run: Path) -> None:
    result = json.loads((tune_run / "result.json").read_text())
    parts = {
        "baseline: prefill": 0.02,
        "baseline: decode": 0.08,
        "best: prefill": 0.005,
        "best: decode": 0.015,
    }
    result["waterfall"] = [{"label": name, "cpu_s_per_token": v} for name, v in parts.items()]
    (tune_run / "result.json").write_text(json.dumps(result))
    steps = Facts.read(tune_run).waterfall
    assert [s.label for s in steps] == ["what you run today", "prefill", "decode"]
    assert [s.per_token for s in steps] == pytest.approx([0.1, 0.085, 0.02])
    assert "−65.0 ms" in Page(render(tune_run)).text.replace("\xa0", " ")


KEYS = st.sampled_from(
    [
        "schema_", "artifact", "workload", "constraints", "machine", "versions", "sensors", "baseline",
        "command", "created", "name", "hash", "settings", "state", "stage", "reason", "energy_per_token",
        "cpu_s_per_token", "ratio_to_baseline", "value", "low", "high", "n", "metric", "quality",
        "quality_drop", "mean", "upper_one_sided", "tokens_per_s", "ttft_ms", "p50", "p95", "number",
        "engine", "threads", "batch", "warnings", "best", "frontier", "verdict", "saving", "saving_low",
        "saving_high", "accepted", "text", "search", "trials", "payback_tokens", "waterfall", "label",
        "phases", "load", "prefill", "decode", "energy", "cpu_s", "value_j", "low_j", "high_j",
        "provenance", "cost_model", "requests", "tokens", "prompt", "generated", "cpu_s_per_token_spread",
        "median_error", "coefficients", "record", "time_s", "notes", "max_quality_drop",
    ]
)  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10**20), st.floats(), st.text(max_size=8),
    st.sampled_from(["trial", "reference", "note", "complete", "final", "estimated", "measured", "accuracy"]),
)  # fmt: skip
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=8),
    max_leaves=30,
)
RECORD = st.dictionaries(KEYS, ANYTHING, max_size=12)


@given(
    kind=st.sampled_from(["tune", "profile"]),
    manifest=RECORD,
    records=st.lists(RECORD.map(lambda r: {"record": "trial", **r}) | RECORD, max_size=5),
    result=st.none() | RECORD,
)
@example(
    kind="tune", manifest={"artifact": {"reason": math.nan, "n_bytes": math.inf}}, records=[], result=None
)
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_content_of_a_run_makes_a_report_fail(
    kind: str, manifest: Any, records: Any, result: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("any")
    (path / "run.json").write_text(json.dumps({**manifest, "schema": 1, "kind": kind}))
    (path / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    if result is not None:
        (path / "result.json").write_text(json.dumps(result))
    for format in FORMATS:
        assert render(path, format)


def test_a_torn_line_is_left_out_and_said(tune_run: Path) -> None:
    with (tune_run / "records.jsonl").open("a") as file:
        file.write('{"record": "trial", "numb')
    assert "damaged lines of records.jsonl, left out: 1" in Page(render(tune_run)).text


def _damage(path: Path) -> None:
    (path / "result.json").write_text("[1, 2")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda path: None, "is not a run"),
    "empty folder": (lambda path: path.mkdir(), "is not a run"),
    "damaged manifest": (lambda path: (path.mkdir(), (path / "run.json").write_text("{")), "damaged"),
    "list for a result": (
        lambda path: (synthetic.tune_run(path), (path / "result.json").write_text("[1]")),
        "holds no JSON object",
    ),
    "damaged result": (lambda path: (synthetic.tune_run(path), _damage(path)), "damaged"),
    "records are a folder": (
        lambda path: (Run.create("tune", path=path).close(), (path / "records.jsonl").mkdir()),
        "cannot read the records",
    ),
    "newer schema": (lambda path: synthetic.tune_run(path, schema=999), "newer Negawatt"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_runs_get_a_sentence(case: str, tmp_path: Path) -> None:
    make, sentence = BAD[case]
    make(tmp_path / "run")
    with pytest.raises(RunError, match=sentence):
        render(tmp_path / "run")


def test_an_unknown_format_is_named(tune_run: Path) -> None:
    with pytest.raises(UsageError, match="html, markdown, json"):
        render(tune_run, "pdf")


def test_writing_where_one_cannot_leaves_nothing(tune_run: Path, tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    with pytest.raises(NegawattError, match="cannot write"):
        write(tune_run, to=blocker / "report.html")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "tune"]


def test_the_command_writes_beside_the_run_by_default(tune_run: Path) -> None:
    result = CliRunner().invoke(command, [str(tune_run)])
    assert result.exit_code == 0
    assert result.stdout == f"{tune_run / 'report.html'}\n"
    assert (tune_run / "report.html").read_text("utf-8") == render(tune_run)


def test_the_command_prints_writes_and_draws(tune_run: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    assert json.loads(run(command, [str(tune_run), "--json"]).stdout)["kind"] == "tune"
    assert run(command, [str(tune_run), "--format", "markdown", "-o", "-"]).stdout == render(
        tune_run, "markdown"
    )
    assert run(command, [str(tune_run), "--svg", str(tmp_path / "plot.svg")]).exit_code == 0
    assert (tmp_path / "plot.svg").read_text("utf-8") == plot_svg(tune_run)
    assert not (tune_run / "report.html").exists()


@pytest.mark.parametrize(
    "options", [["--svg", "x.svg", "--json"], ["--json", "-o", "x"], ["-o", "-", "--open"]], ids=" ".join
)
def test_options_that_exclude_each_other(options: list[str], tune_run: Path) -> None:
    result = CliRunner().invoke(command, [str(tune_run), *options])
    assert isinstance(result.exception, UsageError)


def test_a_report_imports_no_engine(tune_run: Path) -> None:
    code = (
        "import sys\nfrom negawatt.report import render\n"
        f"for format in ('html', 'markdown', 'json'): render({str(tune_run)!r}, format)\n"
        "wrong = {'torch', 'openvino', 'transformers', 'numpy', 'negawatt.engine', 'negawatt.tuning',"
        " 'negawatt.profiling'}\nprint(sorted(wrong & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
