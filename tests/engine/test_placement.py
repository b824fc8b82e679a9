"""Layers on another device: really placed, on the Vulkan driver that computes on the processor if need be."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from negawatt import catalog
from negawatt.artifact import Artifact
from negawatt.engine import BACKENDS, Engine, Settings, backends
from negawatt.engine import llamacpp_library as library
from negawatt.engine.drafter import Drafter
from negawatt.engine.llamacpp_devices import devices, placed
from negawatt.errors import (
    DownloadError,
    EngineError,
    MissingDependency,
    NegawattError,
    UnsupportedSetting,
    UsageError,
)
from negawatt.testing import PlacementContract
from negawatt.testing.small_models import small_model

LAVAPIPE = sorted(Path("/usr/share/vulkan/icd.d").glob("lvp_icd*.json"))


@pytest.fixture(scope="module")
def layered(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return Artifact.open(small_model(tmp_path_factory.mktemp("model"), num_hidden_layers=4))


@pytest.fixture(scope="module")
def vulkan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The runtime for Vulkan, pulled once into the shared home, and a device: Mesa's lavapipe where it is."""
    try:
        catalog.pull("llamacpp-vulkan")
    except DownloadError as exc:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(exc))
    with pytest.MonkeyPatch.context() as patch:
        if LAVAPIPE:
            patch.setenv("VK_DRIVER_FILES", str(LAVAPIPE[0]))
            patch.setenv("GGML_VK_VISIBLE_DEVICES", "0")
        try:
            found = backends.backend("llamacpp").accelerators()
        except NegawattError as exc:
            found, why = [], str(exc)
        else:
            why = "no Vulkan device is here (on Debian: apt-get install mesa-vulkan-drivers)"
        if not found:
            pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
        yield


@pytest.mark.usefixtures("vulkan")
class TestLlamaCpp(PlacementContract):
    @pytest.fixture(scope="class")
    def placed(self) -> Settings:
        return Settings(engine="llamacpp", device="vulkan")

    def test_the_last_layers_are_the_ones_elsewhere(self, layered: Artifact, placed: Settings) -> None:
        """In a process of its own, since one process holds one runtime; the tests' own holds another."""
        code = (
            "import sys; from pathlib import Path; from negawatt.engine import Settings;"
            "from negawatt.engine.llamacpp import LlamaCppBackend;"
            "b = LlamaCppBackend(Settings('llamacpp', 'vulkan', 1, threads=1, max_context=64));"
            "b.load(Path(sys.argv[1]));"
            "print([b._lib.placed('layer_device', b._model, n) for n in range(4)])"
        )
        with Engine(layered, Settings("llamacpp", max_context=64)) as engine:
            path = engine.model_path
        said = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
        )
        assert said.stdout.strip() == "['cpu', 'cpu', 'cpu', 'Vulkan0']"

    def test_doctor_lists_the_device(self) -> None:
        (row,) = (r for r in backends.devices() if r["engine"] == "llamacpp")
        assert (row["status"], row["device"], row["name"]) == ("ok", "vulkan", "llamacpp Vulkan0")
        assert row["reason"]
        assert row["memory_bytes"] > 0

    def test_without_a_device_the_sentence_says_so(
        self, layered: Artifact, placed: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("VK_DRIVER_FILES", str(tmp_path / "none.json"))
        with pytest.raises(EngineError, match="a driver of the device"):
            Engine(layered, placed.replace(gpu_layers=2, max_context=64)).open()
        row = next(r for r in backends.devices() if r["engine"] == "llamacpp")
        assert row["status"] == "absent"
        assert row["remedy"].endswith("a driver of the device")
        with Engine(layered, placed.replace(gpu_layers=0, max_context=64)) as engine:
            assert engine.info["layers"] == {"cpu": 4}

    @pytest.mark.skipif(not LAVAPIPE, reason="there is no driver that computes on the processor")
    def test_a_driver_that_computes_on_the_processor_counts_only_if_named(
        self, layered: Artifact, placed: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("GGML_VK_VISIBLE_DEVICES")
        assert backends.backend("llamacpp").accelerators() == []
        with pytest.raises(EngineError, match="finds no Vulkan device here"):
            Engine(layered, placed.replace(gpu_layers=2, max_context=64)).open()


class LibraryDouble:
    """A double of llama.cpp's list of devices; nothing is computed on them."""

    def __init__(self, *kinds: int) -> None:
        self._kinds = kinds
        self.loaded = 0

    def accelerate(self) -> None:
        self.loaded += 1

    def llama_model_default_params(self) -> library.ModelParams:
        return library.ModelParams(n_gpu_layers=-1, split_mode=1)

    def ggml_backend_dev_count(self) -> int:
        return len(self._kinds)

    def ggml_backend_dev_get(self, number: int) -> int:
        return 1000 + number

    def ggml_backend_dev_type(self, handle: int) -> int:
        return self._kinds[handle - 1000]

    def ggml_backend_dev_name(self, handle: int) -> bytes:
        return f"Device{handle - 1000}".encode()

    def ggml_backend_dev_description(self, handle: int) -> bytes:
        return b"a double"

    def ggml_backend_dev_memory(self, handle: int, free: Any, total: Any) -> None:
        ctypes.cast(total, ctypes.POINTER(ctypes.c_size_t))[0] = (handle - 1000) * 2**30


CPU, GPU, INTEGRATED, ACCELERATOR = 0, 1, 2, 3  # enum ggml_backend_dev_type


def test_graphics_cards_and_integrated_ones_take_layers_and_nothing_else_does() -> None:
    found = devices(LibraryDouble(CPU, GPU, ACCELERATOR, INTEGRATED))  # type: ignore[arg-type]
    assert [(each.name, each.memory_bytes) for each in found] == [("Device1", 2**30), ("Device3", 3 * 2**30)]
    assert str(found[0]) == "Device1 (a double, 1.0 GiB)"


@pytest.mark.parametrize(("wanted", "passed"), [(None, -1), (1, 2), (30, 31)])
def test_the_head_is_one_more_layer_to_llamacpp(wanted: int | None, passed: int) -> None:
    settings = Settings(engine="llamacpp", device="vulkan", gpu_layers=wanted)
    params = placed(LibraryDouble(CPU, GPU), settings)  # type: ignore[arg-type]
    assert (params.n_gpu_layers, params.devices) == (passed, None)


@pytest.mark.parametrize("settings", [Settings("llamacpp"), Settings("llamacpp", "vulkan", 0)])
def test_on_the_processor_no_device_is_even_asked_for(settings: Settings) -> None:
    double = LibraryDouble(CPU, GPU)
    params = placed(double, settings)  # type: ignore[arg-type]
    assert (params.n_gpu_layers, double.loaded) == (0, 0)
    assert ctypes.c_void_p.from_address(params.devices).value is None  # a list of devices that is empty


def test_layers_for_a_device_that_is_not_here_are_refused() -> None:
    with pytest.raises(EngineError, match="finds no Vulkan device here"):
        placed(LibraryDouble(CPU), Settings("llamacpp", "vulkan", 3))  # type: ignore[arg-type]


def test_the_runtime_for_processors_has_no_kernels_for_other_devices(llamacpp_runtime: Path) -> None:
    folder = library.runtime_folder()
    with pytest.raises(EngineError, match="kernels for processors only"):
        library.Library(folder, library.variants(folder)[0]).accelerate()


def test_a_missing_runtime_says_how_to_get_it(
    fresh_home: Path, llamacpp_runtime: Path, layered: Artifact
) -> None:
    with pytest.raises(MissingDependency, match="pull llamacpp-vulkan"):
        library.runtime_folder("vulkan")
    (fresh_home / "runtimes").mkdir(parents=True)
    (fresh_home / "runtimes" / "llamacpp").symlink_to(llamacpp_runtime)
    assert library.runtime_folder() == fresh_home / "runtimes" / "llamacpp"
    (row,) = (r for r in backends.devices() if r["engine"] == "llamacpp")
    assert (row["status"], row["device"]) == ("absent", "vulkan")
    assert "pull llamacpp-vulkan" in row["remedy"]
    with pytest.raises(MissingDependency, match="pull llamacpp-vulkan"):
        Engine(layered, Settings("llamacpp", "vulkan", 2, max_context=64)).open()


def test_one_process_holds_one_runtime(llamacpp_runtime: Path, tmp_path: Path) -> None:
    folder = library.runtime_folder()
    variant = library.variants(folder)[0]
    library.loaded(folder, variant)
    with pytest.raises(EngineError, match="loaded another"):
        library.loaded(tmp_path, variant)
    library.loaded(folder, variant)  # and lives on


@pytest.mark.parametrize("engine", sorted(BACKENDS))
def test_an_engine_has_placement_or_says_that_it_has_not(engine: str) -> None:
    kind = backends.backend(engine)
    if kind.has_gpu_layers:
        kind.check(Settings(engine, kind.devices[1], 3))
        with pytest.raises(UnsupportedSetting, match=f"{engine} can run 3 layers .* {kind.devices[1]}"):
            kind.check(Settings(engine, gpu_layers=3))
    else:
        with pytest.raises(UnsupportedSetting, match=f"{engine} runs all layers .* in one place"):
            kind.check(Settings(engine, gpu_layers=3))
    kind.check(Settings(engine, gpu_layers=None))


def test_settings_tell_placements_apart() -> None:
    settings = Settings("llamacpp", "vulkan", 15, threads=1)
    assert str(settings) == "llamacpp · native · 1 thread · 15 layers on vulkan · batch 1"
    assert "all on vulkan" in str(settings.replace(gpu_layers=None))
    assert "vulkan" not in str(settings.replace(device="cpu", gpu_layers=None))
    assert Settings.from_json(settings.to_json()) == settings
    kinds = {settings.replace(gpu_layers=n).arithmetic for n in (None, 1, 15)}
    assert len({*kinds, Settings("llamacpp").arithmetic}) == 4
    with pytest.raises(UsageError, match="at least 0"):
        Settings(gpu_layers=-1)


def test_a_draft_is_placed_whole_whatever_the_models_number(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Settings] = []

    class Double:
        """Of a loaded backend: it tells what settings the draft gets."""

        settings = Settings("llamacpp", "vulkan", 15)

        def __init__(self, settings: Settings | None = None) -> None:
            self.settings = settings or type(self).settings

        def load(self, path: Path) -> None:
            made.append(self.settings)

        def refuse_draft(self, draft: Double) -> None: ...

    Drafter.load(Double(), Path("draft"))  # type: ignore[arg-type]
    assert (made[0].device, made[0].gpu_layers) == ("vulkan", None)
