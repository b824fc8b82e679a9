"""What each quantizer is for: the laws of grids, and errors that a cleverer rounding makes smaller."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from negawatt.artifact import Artifact
from negawatt.compress import Recipe, Source, compress, parse
from negawatt.compress.gptq import aligned, compensated
from negawatt.compress.grid import Grid
from negawatt.compress.hqq import settled
from negawatt.compress.mixed import allotted
from negawatt.testing.small_models import TEXT, small_model


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(seed: int, width: int) -> torch.Tensor:
    """The second moment of inputs that depend on each other, a few of them large."""
    mix = drawn(seed, width, width) * torch.linspace(0.1, 3, width)[:, None]
    rows = drawn(seed + 1, 4 * width, width // 4) @ drawn(seed + 2, width // 4, width) @ mix.T
    return rows.T @ rows / len(rows)


def lost(weight: torch.Tensor, rounded: torch.Tensor, moment: torch.Tensor) -> float:
    """What the outputs lose: mean of ``|(W − Ŵ) x|²``."""
    gone = weight - rounded
    return float(((gone @ moment) * gone).sum())


@given(st.sampled_from([2, 3, 4, 8]), st.booleans(), st.booleans(), st.integers(0, 1000))
def test_no_weight_inside_the_range_is_further_off_than_half_a_step(
    bits: int, symmetric: bool, clip: bool, seed: int
) -> None:
    grid, weight = Grid(bits, 32, symmetric), drawn(seed, 3, 64)
    scale, offset = grid.scaled(weight, clip=clip)
    assert (scale.half().float() == scale).all()  # what is stored is what was rounded to
    codes = grid.rounded(weight, scale, offset)
    assert codes.max() <= grid.top
    values = grid.values(codes, scale, offset)
    inside = (codes > 0) & (codes < grid.top)
    off = (values - weight).abs().reshape(3, 2, 32) / scale.abs()[..., None]
    assert float((off.reshape(3, 64) * inside).max()) < 0.51


@pytest.mark.parametrize("symmetric", [True, False])
def test_searching_the_scale_never_loses(symmetric: bool) -> None:
    grid, weight = Grid(4, 32, symmetric), drawn(0, 64, 128)
    errors = []
    for clip in (False, True):
        scale, offset = grid.scaled(weight, clip=clip)
        values = grid.values(grid.rounded(weight, scale, offset), scale, offset)
        errors.append(float((values - weight).square().sum()))
    assert errors[1] < errors[0]


def test_what_lies_on_the_grid_stays_as_it_is() -> None:
    grid = Grid(4, 32, symmetric=True)
    codes = torch.randint(0, 16, (8, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    codes[:, ::32] = 0  # the code that only one side has
    scale = torch.full((8, 2), 0.125)
    weight = grid.values(codes, scale, None)
    found = grid.scaled(weight, clip=True)
    assert grid.values(grid.rounded(weight, *found), *found) == pytest.approx(weight, abs=1e-6)


@pytest.mark.parametrize("by_energy", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_compensation_halves_what_outputs_lose(by_energy: bool, symmetric: bool) -> None:
    grid, weight, moment = Grid(3, 32, symmetric), drawn(3, 48, 128), correlated(5, 128)
    scale, offset = grid.scaled(weight, clip=True)
    nearest = grid.values(grid.rounded(weight, scale, offset), scale, offset)
    codes = compensated(grid, weight, scale, offset, moment, damping=0.01, by_energy=by_energy)
    clever = grid.values(codes, scale, offset)
    assert lost(weight, clever, moment) < 0.5 * lost(weight, nearest, moment)


def test_without_correlation_compensation_is_rounding() -> None:
    grid, weight = Grid(4, 32, symmetric=True), drawn(3, 16, 64)
    scale, offset = grid.scaled(weight, clip=True)
    codes = compensated(grid, weight, scale, offset, torch.eye(64), damping=0.01, by_energy=True)
    assert (codes == grid.rounded(weight, scale, offset)).all()


def test_alignment_recovers_the_outputs_from_drifted_inputs() -> None:
    weight, mix = drawn(0, 8, 32), torch.eye(32) + 0.1 * drawn(1, 32, 32)
    original = drawn(2, 4096, 32)
    drifted = original @ mix.T
    moment, drift = drifted.T @ drifted / 4096, (original - drifted).T @ drifted / 4096
    whole = aligned(weight, moment, drift, share=1.0, damping=1e-6)
    assert drifted @ whole.T == pytest.approx(original @ weight.T, abs=1e-2)
    assert aligned(weight, moment, drift, share=0.0, damping=1e-6) == pytest.approx(weight)


def test_hqq_offsets_forgive_outliers() -> None:
    weight = drawn(7, 32, 64)
    weight[:, ::32] *= 6
    grid = Grid(4, 32, symmetric=False)
    plain, clever = grid.scaled(weight, clip=False), settled(grid, weight, norm=0.7, rounds=20)

    def norm(found: tuple[torch.Tensor, torch.Tensor | None]) -> float:
        values = grid.values(grid.rounded(weight, *found), *found)
        return float((values - weight).abs().pow(0.7).sum())

    assert norm(clever) < norm(plain)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "bert"])
def test_awq_moves_scales_without_changing_the_model(family: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT * 2, "utf-8")
    model = small_model(tmp_path / "model", family)
    recipe = Recipe(str(model), (parse("awq:bits=8,group=16,points=4,embeddings=0"),),
                    str(tmp_path / "text.txt"), windows=4, heldout=2, length=64, threads=1)  # fmt: skip
    document = compress(recipe, tmp_path / "out", keep_worse=True)
    quality = document["passes"][0]["quality"]
    assert quality["after"] == pytest.approx(quality["before"], rel=0.02)
    before, after = (Source.of(Artifact.open(tmp_path / name)) for name in ("model", "out"))
    norms = [
        n for n, t in before.tensors.items() if (len(t.shape) == 1 and "norm" in n.lower()) or ".ln_" in n
    ]
    moved = [n for n in norms if not torch.equal(before.tensor(n), after.tensor(n))]
    assert bool(moved) == (family != "bert")  # behind its norms a second way leads past the layers


@given(
    st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5), st.integers(1, 9)), min_size=1, max_size=8),
    st.floats(3, 8),
)
def test_widths_keep_to_the_budget(blocks: list[tuple[float, float, int]], average: float) -> None:
    losses = [{3: low + high, 4: high, 8: 0.0} for low, high, _ in blocks]
    sizes = [size for *_, size in blocks]
    chosen = allotted(losses, sizes, (3, 4, 8), average)
    assert sum(b * s for b, s in zip(chosen, sizes, strict=True)) <= average * sum(sizes) + 1e-6


def test_bits_go_where_they_are_missed_most() -> None:
    losses = [{4: 0.1, 8: 0.0}, {4: 3.0, 8: 0.0}, {4: 0.2, 8: 0.0}]
    assert allotted(losses, [10, 10, 10], (4, 8), 5.4) == [4, 8, 4]
    assert allotted(losses, [10, 10, 10], (4, 8), 8.0) == [8, 8, 8]
    assert allotted(losses, [10, 10, 10], (4, 8), 4.0) == [4, 4, 4]
