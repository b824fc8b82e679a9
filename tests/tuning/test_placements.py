"""Layers on other devices as a dimension of a search: where it is offered, and what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from crashing import Crashing

from negawatt.artifact import Artifact
from negawatt.engine import Settings
from negawatt.engine.device import Device
from negawatt.engine.llamacpp import LlamaCppBackend
from negawatt.errors import MissingDependency, UsageError
from negawatt.meter import Station
from negawatt.meter.nvml import NvmlSensor
from negawatt.meter.rapl import RaplSensor
from negawatt.run import Run
from negawatt.testing.nvml import NvmlDouble
from negawatt.testing.powercap import PowercapTree
from negawatt.testing.small_models import small_model
from negawatt.tuning import Space
from negawatt.tuning.ablation import path
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.placements import Placements
from negawatt.tuning.space_file import read_space

SPACE = Space(
    ("llamacpp", "openvino"), (1,), (1,), 96, {"llamacpp": ("q8_0",), "openvino": ("int8",)},
    kv_caches={"llamacpp": ("default",), "openvino": ("u8",)}, speculation=("none",),
)  # fmt: skip
CARD = Device("vulkan", "Vulkan0", "a double of a card", 2**33)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    folder = tmp_path_factory.mktemp("models")
    return [Artifact.open(small_model(folder / str(n), num_hidden_layers=n)) for n in (10, 8)]


def offering(monkeypatch: pytest.MonkeyPatch, *found: Device) -> None:
    """Let llama.cpp find these devices: a double of a machine that has them."""
    monkeypatch.setattr(LlamaCppBackend, "accelerators", classmethod(lambda cls: list(found)))


@pytest.fixture
def counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a machine of files and a double of NVML that count processors, and a GPU if asked."""
    tree, nvml = PowercapTree.server(tmp_path), NvmlDouble()

    class Flowing(RaplSensor):
        """A counter that has moved whenever it is read."""

        def read(self) -> Any:
            tree.spend(1.0)
            nvml.spend(1.0)
            return super().read()

    def made(*, gpu: bool) -> None:
        spending: Any = nvml
        sensors = [Flowing(tree.root), *([NvmlSensor(spending)] if gpu else [])]
        monkeypatch.setattr(import_module("negawatt.meter.station"), "_shared", Station(sensors))

    return made


def numbers(space: Space, engine: str = "llamacpp") -> set[int | None]:
    return {c.settings.gpu_layers for c in space.grid() if c.settings.engine == engine}


def asked(tmp_path: Path, layers: str, space: Space = SPACE) -> Space:
    file = tmp_path / "asked.toml"
    file.write_text(f"schema = 1\ngpu_layers = {layers}\n", "utf-8")
    return read_space(file, space)


def test_with_one_device_a_space_is_what_it_was(
    monkeypatch: pytest.MonkeyPatch, models: Sequence[Artifact], counters: Any
) -> None:
    counters(gpu=True)
    offering(monkeypatch)
    here = Placements.here(SPACE, "cpu")
    space = here.within(SPACE, models)
    assert (here.devices, here.note) == ({}, "")
    assert here.cost.counters[0] == "rapl:cpu/0"
    assert not any("gpu" in each for each in here.cost.counters)
    assert space == SPACE
    assert "gpu_layers" not in space.to_json()
    assert numbers(space) == {None}


def test_tries_quarters_where_joules_hold_what_the_device_draws(
    monkeypatch: pytest.MonkeyPatch, models: Sequence[Artifact], counters: Any
) -> None:
    counters(gpu=True)
    offering(monkeypatch, CARD)
    here = Placements.here(SPACE, "cpu")
    assert (here.devices, here.note) == ({"llamacpp": "vulkan"}, "")
    assert {"rapl:cpu/0", "nvml:gpu/0"} <= set(here.cost.counters)
    space = here.within(SPACE, models[:1])
    assert space.to_json()["gpu_layers"] == {"llamacpp": [0, 2, 5, 7, 10]}
    assert numbers(space) == {None, 2, 5, 7, 10}
    assert numbers(space, "openvino") == {None}
    assert {c.settings.device for c in space.grid()} == {"cpu", "vulkan"}
    assert here.within(SPACE, models).gpu_layers == {"llamacpp": (0, 2, 4, 6, 8)}, "of the smaller model"


def test_cpu_seconds_hold_nothing_of_a_device(
    monkeypatch: pytest.MonkeyPatch, models: Sequence[Artifact], counters: Any, tmp_path: Path
) -> None:
    counters(gpu=False)
    offering(monkeypatch, CARD)
    here = Placements.here(SPACE, "cpu")
    assert here.devices == {}
    assert here.cost.in_joules, "of the processors"
    assert here.within(SPACE, models) == SPACE
    wanted = asked(tmp_path, '["none", 3, "all"]')
    named = Placements.here(wanted, "cpu")
    assert not named.cost.in_joules
    assert "hold nothing of what vulkan devices draw" in named.note
    assert numbers(named.within(wanted, models)) == {None, 3, 8}


def test_other_machines_place_only_what_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, counters: Any, tmp_path: Path
) -> None:
    counters(gpu=True)
    offering(monkeypatch, CARD)
    assert Placements.here(SPACE, "cpu", cluster=True).devices == {}
    assert Placements.here(asked(tmp_path, "[4]"), "cpu", cluster=True).devices == {"llamacpp": "vulkan"}


def test_what_cannot_be_placed_is_refused(
    monkeypatch: pytest.MonkeyPatch, models: Sequence[Artifact], tmp_path: Path
) -> None:
    wanted = asked(tmp_path, "[9]")
    offering(monkeypatch)
    with pytest.raises(UsageError, match="llamacpp finds no vulkan device here"):
        Placements.here(wanted, "cpu")

    def absent(_: Any) -> list[Device]:
        raise MissingDependency("it is not here; get it with: negawatt engines pull llamacpp-vulkan")

    monkeypatch.setattr(LlamaCppBackend, "accelerators", classmethod(absent))
    with pytest.raises(UsageError, match="pull llamacpp-vulkan"):
        Placements.here(wanted, "cpu")
    with pytest.raises(UsageError, match="none of the engines can run a part"):
        Placements.here(asked(tmp_path, "[9]", Space(("openvino",), (1,), (1,), 96, {})), "cpu")
    offering(monkeypatch, CARD)
    assert numbers(Placements.here(wanted, "cpu").within(wanted, models[:1])) == {9}
    with pytest.raises(UsageError, match="has 8 layers, of which 9"):
        Placements.here(wanted, "cpu").within(wanted, models)


@pytest.mark.parametrize("layers", ["[]", "[-2]", "[true]", '["some"]', "[0.5]", "8"])
def test_what_is_no_number_of_layers_is_said(tmp_path: Path, layers: str) -> None:
    with pytest.raises(UsageError, match=r"asked\.toml: gpu_layers must be a list"):
        asked(tmp_path, layers)


def test_quality_is_asked_for_each_placement_and_choices_lead_back() -> None:
    space = Space(**{**vars(SPACE), "gpu_layers": {"llamacpp": (0, 4, 8)}, "threads": (1, 2)})
    points = [c for c in space.grid() if c.settings.engine == "llamacpp"]
    assert len(points) == 6
    assert len({c.arithmetic for c in points}) == 3, "threads do not change it, placements do"
    for point in points:
        chosen = space.parameters(point)
        assert chosen["llamacpp.gpu_layers"] == (point.settings.gpu_layers or 0)
    assert {c.settings.gpu_layers for c in space.starts()} == {None}, "the search begins on the processor"


def test_a_pass_that_takes_layers_out_stays_on_the_processor(tmp_path: Path) -> None:
    file = tmp_path / "depth.toml"
    file.write_text("schema = 1\n[[pass]]\nname = 'depth'\nratio = 0.2\nrequired = true\n", "utf-8")
    space = read_space(file, Space(**{**vars(SPACE), "gpu_layers": {"llamacpp": (0, 8)}}))
    assert numbers(space) == {None}


def test_the_processors_limits_are_not_put_on_another_device() -> None:
    limits = {"power_caps_w": (0, 65.0), "clocks_mhz": (0, 2000), "gpu_power_caps_w": (0, 300.0)}
    changes = {"gpu_layers": {"llamacpp": (0, 8)}, "limits": limits}
    points = [c.settings for c in Space(**{**vars(SPACE), **changes}).grid()]
    assert {(p.device, p.power_cap_w) for p in points if p.power_cap_w} == {("cpu", 65.0), ("vulkan", 300.0)}
    assert {p.device for p in points if p.clock_mhz} == {"cpu"}


def test_the_placement_is_a_lever_of_its_own() -> None:
    settings = Settings("llamacpp", threads=1, max_context=96, weight_format="q8_0")
    steps = path(Candidate(settings), Candidate(settings.replace(device="vulkan", gpu_layers=8)))
    assert [(step.lever, step.choice) for step in steps[1:]] == [("placement", "8 layers on vulkan")]
    back = path(Candidate(settings.replace(device="vulkan")), Candidate(settings.replace(engine="openvino")))
    assert {step.candidate.settings.device for step in back[1:]} == {"cpu"}


def test_a_driver_that_crashes_is_not_held_against_the_engine(tmp_path: Path) -> None:
    space = Space(
        ("llamacpp",), (1,), (1, 2), 96, {"llamacpp": ("q8_0", "q4_0")}, kv_caches={"llamacpp": ("default",)},
        speculation=("none",), gpu_layers={"llamacpp": (0, 2, 4, 6)},
    )  # fmt: skip
    baseline = Candidate(Settings("transformers", weight_format="fp32", max_context=96))
    with Run.create("tune", path=tmp_path / "run", reference_load_s=1.0) as run:
        study = Crashing(
            run, space, baseline, lambda c: c.settings.device != "cpu",
            "died of SIGSEGV (Segmentation fault)",
        )  # fmt: skip
        study.search(lambda: 1.0, lambda text: None)
        notes = [r["text"] for r in run.records("note")]
    tried = [t.settings.device for t in study.trials]
    assert tried.count("vulkan") == 2
    assert tried.count("cpu") == 4, "all of them"
    assert any(
        note.startswith("llamacpp on vulkan is not tried any more: its process died") for note in notes
    )
