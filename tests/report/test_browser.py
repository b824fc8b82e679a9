"""The page in a real browser: it fits a phone, its points speak, its table sorts."""

# ruff: noqa: E501  the probe is JavaScript

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import synthetic

from negawatt.report import render

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")

PROBE = """
const seen = { width: innerWidth, scroll: document.documentElement.scrollWidth };
const plots = [...document.querySelectorAll(".pareto")].filter((p) => p.getBoundingClientRect().width);
seen.plots = plots.length;
plots[0].querySelector(".pt.best").dispatchEvent(new FocusEvent("focus"));
const tip = document.querySelector(".tip");
seen.tip = tip.hidden ? null : tip.textContent;
const box = tip.getBoundingClientRect();
seen.tipInside = box.left >= 0 && box.right <= innerWidth;
document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
seen.escaped = tip.hidden;
const hit = plots[0].querySelector(".pt.baseline .hit").getBoundingClientRect();
seen.target = Math.min(hit.width, hit.height);
const [clientX, clientY] = [hit.left + hit.width / 2 + 3, hit.top + hit.height / 2];
plots[0].dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true, detail: 1, clientX, clientY }));
seen.tapped = tip.textContent;
const table = document.querySelector(".trials");
const header = [...table.querySelectorAll("th")].find((th) => th.textContent === "CPU / token");
const column = () => [...table.tBodies[0].rows].map((row) => row.cells[header.cellIndex].dataset.sort ?? null);
header.querySelector("button").click();
seen.up = column();
header.querySelector("button").click();
seen.down = column();
seen.sorted = header.getAttribute("aria-sort");
seen.unnamed = [...document.querySelectorAll("a.pt")].filter((a) => !a.getAttribute("aria-label")).length;
parent.postMessage(JSON.stringify(seen), "*");
"""
FRAME = """<!doctype html><body><script>addEventListener("message", (event) => {
const out = document.createElement("pre"); out.id = "seen"; out.textContent = event.data; document.body.append(out);
})</script><iframe src="page.html" width="WIDTH" height="900" style="border:0"></iframe></body>"""


def browse(page: Path, folder: Path) -> str:
    """The page's final DOM. The sandbox is off because tests may run as root; the page is our own."""
    assert BROWSER is not None
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run --hide-scrollbars"
        " --window-size=1400,1000 --virtual-time-budget=4000 --dump-dom"
    )
    arguments = [BROWSER, *flags.split(), f"--user-data-dir={folder / 'profile'}", page.as_uri()]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=True).stdout


def probe(source: str, width: int, folder: Path) -> dict[str, Any]:
    """Run `PROBE` in the page, with the policy that would refuse a foreign script taken out.

    The page is in a frame, since a browser window has a least width and a frame has none.
    """
    source = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", source)
    inner = source.replace("</body>", f"<script>{PROBE}</script></body>")
    (folder / "page.html").write_text(inner, "utf-8")
    (folder / "frame.html").write_text(FRAME.replace("WIDTH", str(width)), "utf-8")
    found = re.search(r'<pre id="seen">(.*?)</pre>', browse(folder / "frame.html", folder), re.S)
    assert found is not None, "the probe did not finish"
    seen: dict[str, Any] = json.loads(unescape(found[1]))
    return seen


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_speaks_and_sorts(width: int, tmp_path: Path) -> None:
    seen = probe(render(synthetic.tune_run(tmp_path / "run")), width, tmp_path)
    assert seen["width"] == width
    assert seen["scroll"] == width, "the page scrolls sideways"
    assert seen["plots"] == 1
    assert seen["tip"].startswith("Recommended\nllamacpp")
    assert seen["tipInside"]
    assert seen["escaped"]
    assert seen["target"] >= 22
    assert seen["tapped"].startswith("What you run today")
    up, down = ([float(v) for v in seen[way] if v is not None] for way in ("up", "down"))
    assert len(up) == 23
    assert up == sorted(up)
    assert down == sorted(up, reverse=True)
    assert seen["up"][-2:] == seen["down"][-2:] == [None, None], "trials without a figure come last"
    assert seen["sorted"] == "descending"
    assert seen["unnamed"] == 0


def test_the_policy_lets_the_own_script_run_and_no_other(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    source = render(synthetic.tune_run(tmp_path / "run"))
    page.write_text(source.replace("</body>", "<script>document.title = 'foreign'</script></body>"), "utf-8")
    dom = browse(page, tmp_path)
    assert "<title>foreign</title>" not in dom
    assert 'class="tip"' in dom, "the page's own script did not run"


@pytest.mark.parametrize("name", ["x" * 300, "a very long name " * 20])
def test_long_names_do_not_widen_the_page(name: str, tmp_path: Path) -> None:
    run = synthetic.tune_run(tmp_path / "run", artifact={"name": name}, command=["negawatt", "tune", name])
    assert probe(render(run), 390, tmp_path)["scroll"] == 390
