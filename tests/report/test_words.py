"""Numbers in words, scales and colours."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.energy import Energy
from negawatt.report import words
from negawatt.report.markdown import escaped
from negawatt.report.records import Drop, Interval
from negawatt.report.svg import Box, Scale, element, place

AMOUNTS = st.floats(1e-9, 1e12)


@given(AMOUNTS)
def test_figures_keep_three_digits_and_no_exponent(value: float) -> None:
    shown = words.figure(value)
    assert re.fullmatch(r"[\d,]+(\.\d+)?", shown)
    assert float(shown.replace(",", "")) == pytest.approx(value, rel=0.0051)


@given(AMOUNTS)
def test_a_prefix_leaves_one_to_three_digits_before_the_point(value: float) -> None:
    factor, _ = words.prefix(value)
    assert 0.99 <= value / factor < 1000 or value >= 1e12 * 0.99


def test_energies_keep_their_marks() -> None:
    plain = {
        "12.4 J": Energy.measured(12.4, 0.1),
        "~12 J (8.2–21)": Energy.estimated(12.4, 8.2, 21.1),
        "~190 mJ (76–320)": Energy.estimated(0.1891, 0.0756, 0.3215),
        "not measured: permission denied": Energy.missing("permission denied"),
    }
    for shown, energy in plain.items():
        assert words.joules(energy).replace(words.NBSP, " ") == shown


@pytest.mark.parametrize(
    ("drop", "shown"),
    [
        (Drop(0.003, -0.004, 0.009, 0.008), "no difference shown (−0.40 to 0.90 points)"),
        (Drop(0.02, 0.01, 0.03, 0.028), "2.00 points worse (1.00 to 3.00 points)"),
        (Drop(-0.02, -0.03, -0.01, -0.012), "2.00 points better (−3.00 to −1.00 points)"),
        (None, "not measured"),
    ],
)
def test_a_drop_inside_the_noise_is_no_difference(drop: Drop | None, shown: str) -> None:
    assert words.drop(drop, "accuracy").replace(words.NBSP, " ") == shown


def test_a_saving_inside_the_noise_is_no_difference() -> None:
    assert words.saved(Interval(0.02, -0.01, 0.05)).startswith("no difference shown")
    assert not words.saved(Interval(0.04, 0.02, 0.06)).startswith("no difference shown")


@given(st.lists(AMOUNTS, min_size=1, max_size=20), st.booleans())
def test_scales_hold_their_values_and_ticks(values: list[float], may_log: bool) -> None:
    scale = Scale.fit(values, 50.0, 850.0, may_log=may_log)
    pixels = [scale(v) for v in sorted(values)]
    assert all(50.0 <= p <= 850.0 for p in pixels)
    assert pixels == sorted(pixels)
    ticks = scale.ticks(7)
    assert len(ticks) <= 9
    assert ticks == sorted(set(ticks))
    assert all(49.9 <= scale(t) <= 850.1 for t in ticks)


@given(st.floats(0, 500), st.floats(0, 300))
def test_labels_stay_inside_and_off_the_point(x: float, y: float) -> None:
    inside, point = Box(0, 0, 500, 300), Box(x - 9, y - 9, 18, 18)
    box = place(120, 18, (x, y), [point], inside)
    assert box.overlap(inside) >= 0.9 * 120 * 18
    assert box.overlap(point) < 0.2 * 18 * 18


@given(st.text())
def test_markdown_takes_no_markup_from_text(text: str) -> None:
    shown = escaped(text)
    assert "\n" not in shown
    assert "\r" not in shown
    assert not re.search(r"[<>]|(?<!\\)(?:\\\\)*[|`*\[\]]", shown)


@given(st.text(), st.text())
def test_elements_escape_text_and_attributes(text: str, value: str) -> None:
    made = element("text", text, aria_label=value)
    inner = made.removeprefix("<text aria-label=").removesuffix("</text>")
    assert inner.count("<") == 0
    assert inner.count('"') == 2
    assert inner.count(">") == 1


# -- contrast (WCAG 2.2: relative luminance, 4.5:1 for text, 3:1 for marks) ---------------------------


def _themes() -> dict[str, dict[str, str]]:
    css = files("negawatt.report").joinpath("page.css").read_text("utf-8")
    blocks = re.findall(r":root \{(.*?)\}", css, re.S)
    assert len(blocks) == 3
    found = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6})", block)) for block in blocks]
    return dict(zip(("light", "dark", "print"), found, strict=True))


def _luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _contrast(one: str, other: str) -> float:
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark", "print"])
def test_text_and_marks_stand_out(theme: str) -> None:
    colours = _themes()[theme]
    for ground in ("paper", "raised", "refuse"):
        for text in ("ink", "muted", "good", "base"):
            assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert _contrast(colours["ink"], colours["good-soft"]) >= 4.5
    assert _contrast(colours["ink"], colours["base-soft"]) >= 4.5
    assert _contrast(colours["good"], colours["good-soft"]) >= 3
    assert _contrast(colours["base"], colours["good-soft"]) >= 3
    assert _contrast(colours["faint"], colours["paper"]) >= 2.5
