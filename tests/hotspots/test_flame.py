"""The flame graph: complete in itself, true to the joules, and readable on a phone as on a wide screen."""

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

from negawatt import Energy, Measurement
from negawatt.hotspots import Hotspots
from negawatt.hotspots.flame import graph, page
from negawatt.hotspots.tally import Key, Tally

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = '<img src=x onerror=alert(1)> & "q" </script>'


def hotspots(energy: Energy | None = None, title: str = "job.py") -> Hotspots:
    tally = Tally(Key("all", "whole"))
    train = Key("train_a_very_long_function_name_that_has_to_be_cut", "function", "job.py:3")
    tally.add([Key("main", "function", "job.py:1"), train], 3.0, 30)
    tally.add([Key("main", "function", "job.py:1"), Key(HOSTILE, "function", "job.py:9")], 1.0, 10)
    tally.add([Key("starting Python", "rest")], 1.0, 0)
    tally.add([Key("tiny", "function")], 1e-6, 1)
    energy = energy or Energy.estimated(50.0, 20.0, 90.0, "three models")
    nothing = Energy.zero()
    window = Measurement(0.0, 6.0, energy, {"cpu": energy}, {}, nothing, energy, 5.0, 0.0, 0.0)
    return Hotspots.share(title, tally, window, samples=41, looking_cpu_s=0.02, notes=("a note",))


def frames(svg: str) -> dict[str, tuple[float, float, int]]:
    """Start and width in per cent of every frame, and its top in pixels, by name."""
    found = {}
    for tag in re.findall(r'<svg class="frame[^>]*>', svg):
        value = dict(re.findall(r'([\w-]+)="([^"]*)"', tag))
        found[unescape(value["data-name"])] = (
            float(value["x"][:-1]),
            float(value["width"][:-1]),
            int(value["y"]),
        )
    return found


def test_width_is_joules_and_children_stand_below_their_parent() -> None:
    found = frames(str(graph(hotspots())))
    assert found["job.py"] == (0.0, 100.0, 0)
    assert found["main"][:2] == pytest.approx((0, 80), abs=1e-3)
    train = found["train_a_very_long_function_name_that_has_to_be_cut"]
    assert train[:2] == pytest.approx((0, 60), abs=1e-3)
    assert found[HOSTILE][:2] == pytest.approx((60, 20), abs=1e-3)
    assert found["starting Python"][:2] == pytest.approx((80, 20), abs=1e-3)
    assert found["main"][2] < train[2] == found[HOSTILE][2]
    assert "tiny" not in found


def test_repeated_layers_are_one_frame() -> None:
    tally = Tally(Key("all", "whole"))
    for number in range(30):
        layer = Key(f"layers.{number}", "module", "Layer")
        tally.add([layer, Key("mlp", "module", "MLP")], 1.0, 1, 5.0, 7.0)
    energy = Energy.measured(30.0)
    window = Measurement(0.0, 1.0, energy, {"cpu/0": energy}, {}, Energy.zero(), energy, 30.0, 0.0, 0.0)
    found = frames(str(graph(Hotspots.share("m", tally, window))))
    assert found.keys() == {"m", "layers.* (30)", "mlp"}


def test_the_page_fetches_nothing_and_no_name_becomes_markup() -> None:
    text = page(hotspots(title=HOSTILE))
    assert "<img" not in text
    assert text.count("</script>") == 1
    assert not re.search(r"https?://|@import|url\(", text)
    assert "default-src 'none'" in text
    assert "50 J (20–90)" in text
    assert "three models" in text


def test_missing_joules_are_told_and_width_is_cpu_time() -> None:
    text = page(hotspots(Energy.missing("no counter here")))
    assert "no counter here" in text
    assert "joules are missing" in text
    assert frames(text)["main"][1] == pytest.approx(80, abs=1e-3)
    assert "0 J" not in re.sub(r"\d0 J", "", text)


PROBE = """
const seen = { width: innerWidth, scroll: document.documentElement.scrollWidth };
const frame = (name) => [...document.querySelectorAll(".frame")].find((f) => f.dataset.name.startsWith(name));
const wide = (name) => frame(name).getBoundingClientRect().width;
seen.label = frame("train").querySelector("text").textContent;
seen.overflow = [...document.querySelectorAll(".frame text")].filter((t) => t.textContent && t.getBBox().width > t.parentNode.getBoundingClientRect().width).length;
frame("train").dispatchEvent(new FocusEvent("focus"));
const tip = document.querySelector(".tip");
seen.tip = tip.textContent;
const box = tip.getBoundingClientRect();
seen.tipInside = box.left >= 0 && box.right <= innerWidth;
seen.height = frame("train").getBoundingClientRect().height;
frame("train").dispatchEvent(new MouseEvent("click", { bubbles: true }));
seen.zoomed = wide("train") / wide("job.py");
seen.gone = frame("starting").classList.contains("gone");
seen.back = !document.querySelector(".zoom button").hidden;
document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
seen.escaped = tip.hidden && Math.abs(wide("train") / wide("job.py") - 0.6) < 0.01;
seen.ink = getComputedStyle(document.body).color;
parent.postMessage(JSON.stringify(seen), "*");
"""
FRAME = """<!doctype html><body><script>addEventListener("message", (event) => {
const out = document.createElement("pre"); out.id = "seen"; out.textContent = event.data; document.body.append(out);
})</script><iframe src="page.html" width="WIDTH" height="900" style="border:0"></iframe></body>"""


def probe(source: str, width: int, folder: Path) -> dict[str, Any]:
    """Run `PROBE` in the page, without the policy that would refuse a foreign script.

    The sandbox is off because tests may run as root; the page is our own.
    """
    source = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", source)
    (folder / "page.html").write_text(source.replace("</html>", f"<script>{PROBE}</script></html>"), "utf-8")
    (folder / "frame.html").write_text(FRAME.replace("WIDTH", str(width)), "utf-8")
    assert BROWSER is not None
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run --hide-scrollbars"
        " --window-size=1400,1000 --virtual-time-budget=4000 --dump-dom"
    )
    arguments = [
        BROWSER,
        *flags.split(),
        f"--user-data-dir={folder / 'profile'}",
        (folder / "frame.html").as_uri(),
    ]
    dom = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'<pre id="seen">(.*?)</pre>', dom, re.S)
    assert found is not None, "the probe did not finish"
    seen: dict[str, Any] = json.loads(unescape(found[1]))
    return seen


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_speaks_and_zooms(width: int, tmp_path: Path) -> None:
    seen = probe(page(hotspots()), width, tmp_path)
    assert seen["width"] == seen["scroll"] == width, "the page scrolls sideways"
    assert seen["label"].startswith("train_a")
    assert (seen["label"].endswith("…")) == (width == 390)
    assert seen["overflow"] == 0, "a name is wider than its frame"
    assert seen["tip"].startswith("train_a_very_long_function_name_that_has_to_be_cut\njob.py:3\n~30 J")
    assert seen["tipInside"]
    assert seen["height"] >= 24
    assert seen["zoomed"] == pytest.approx(1, abs=0.01)
    assert seen["gone"]
    assert seen["back"]
    assert seen["escaped"]
