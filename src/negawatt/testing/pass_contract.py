"""`PassContract`: what every pass must do, run on small random models of several families.

Subclass it, and supply a fixture ``technique``: the pass as the command line writes it. Families that the
pass refuses are left out of ``families``.

::

    class TestMyPass(PassContract):
        families = ("llama", "gpt2")

        @pytest.fixture
        def technique(self) -> str:
            return "mypass:ratio=0.5"
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from negawatt.artifact import Artifact
from negawatt.compress import Draft, Recipe, Source, compress, parse
from negawatt.errors import ArtifactError, IntegrityError, UsageError
from negawatt.testing.small_models import FAMILIES, TEXT, small_model


class _Killed(BaseException):
    """Stands for the death of the process right after a step was kept."""


class PassContract:
    """The promises; every method is one."""

    families: ClassVar[tuple[str, ...]] = FAMILIES
    """The families of small models that the pass works on."""
    refused: ClassVar[tuple[str, ...]] = ()
    """Families that it refuses, with the reason."""

    @pytest.fixture
    def text(self, tmp_path: Path) -> Path:
        """Calibration text, enough for several windows."""
        place = tmp_path / "text.txt"
        place.write_text(TEXT * 4, "utf-8")
        return place

    def recipe(self, model: Path, technique: str, text: Path) -> Recipe:
        return Recipe(str(model), (parse(technique),), str(text), windows=4, heldout=2, length=64, threads=1)

    def made(self, model: Path, technique: str, text: Path, output: Path) -> dict[str, Any]:
        return compress(self.recipe(model, technique, text), output, keep_worse=True)

    def test_parameters_are_declared_for_a_tuner(self, technique: str) -> None:
        found = type(parse(technique))
        assert found.summary
        for parameter in found.parameters:
            assert parameter.help
            for value in (parameter.default, *parameter.search):
                assert parameter.checked(value, found.name) == value
                assert parameter.checked(str(value), found.name) == value
            json.dumps(parameter.to_json(), allow_nan=False)
        with pytest.raises(UsageError, match="no parameter"):
            found(nonsense=1)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_the_result_of_every_family_runs(
        self, family: str, technique: str, text: Path, tmp_path: Path
    ) -> None:
        if family not in self.families:
            pytest.skip("the pass is not for this family")
        model = small_model(tmp_path / "model", family)
        before = Artifact.open(model).sha256
        document = self.made(model, technique, text, tmp_path / "out")
        (step,) = document["passes"]
        assert 0 <= step["quality"]["after"] < float("inf")
        assert step["cpu_s"] > 0
        result = Artifact.open(tmp_path / "out")
        result.verify()
        assert result.lineage[-1]["pass"] == parse(technique).name
        source = Source.of(result)
        for name in source.tensors:
            source.tensor(name)  # raises where one is not finite
        assert Artifact.open(model).sha256 == before
        assert not list(tmp_path.glob("*.partial"))

    def test_a_family_it_cannot_work_on_is_refused_in_a_sentence(
        self, technique: str, text: Path, tmp_path: Path
    ) -> None:
        for family in self.refused:
            with pytest.raises((UsageError, ArtifactError)) as found:
                self.made(small_model(tmp_path / family, family), technique, text, tmp_path / "out")
            assert len(str(found.value).splitlines()) == 1
            assert not list(tmp_path.glob("out*"))

    def test_transformers_loads_the_result_without_us(
        self, technique: str, text: Path, tmp_path: Path
    ) -> None:
        import transformers

        self.made(small_model(tmp_path / "model", self.families[0]), technique, text, tmp_path / "out")
        folder = Artifact.open(tmp_path / "out").checkpoint()
        _, report = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report.get("mismatched_keys")

    def test_a_killed_pass_goes_on_to_the_same_bits(
        self, technique: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = small_model(tmp_path / "model", self.families[0])
        whole = self.made(model, technique, text, tmp_path / "whole")
        keep, kills = Draft.keep, 0

        def keep_and_die(draft: Draft, *args: Any, **keywords: Any) -> None:
            keep(draft, *args, **keywords)
            raise _Killed

        monkeypatch.setattr(Draft, "keep", keep_and_die)
        while True:  # every attempt dies after its first step
            try:
                resumed = self.made(model, technique, text, tmp_path / "resumed")
            except _Killed:
                kills += 1
                continue
            break
        assert kills > 1
        assert resumed["sha256"] == whole["sha256"]

    def test_a_tampered_step_is_not_built_upon(
        self, technique: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = small_model(tmp_path / "model", self.families[0])
        keep = Draft.keep

        def keep_and_die(draft: Draft, *args: Any, **keywords: Any) -> None:
            keep(draft, *args, **keywords)
            if list((tmp_path / "out.partial").glob("*/*.safetensors")):
                raise _Killed

        with monkeypatch.context() as patch:
            patch.setattr(Draft, "keep", keep_and_die)
            with pytest.raises(_Killed):
                self.made(model, technique, text, tmp_path / "out")
        step = sorted((tmp_path / "out.partial").glob("*/*.safetensors"))[-1]
        content = bytearray(step.read_bytes())
        content[-1] ^= 1
        step.write_bytes(content)
        with pytest.raises(IntegrityError, match="delete"):
            self.made(model, technique, text, tmp_path / "out")

    def test_weights_that_are_no_numbers_are_refused(
        self, technique: str, text: Path, tmp_path: Path
    ) -> None:
        model = small_model(tmp_path / "model", self.families[0])
        spoil(model)
        with pytest.raises(ArtifactError, match="NaN or infinite"):
            self.made(model, technique, text, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def spoil(model: Path) -> None:
    """Put a NaN into the last matrix of a checkpoint."""
    from safetensors.torch import load_file, save_file

    file = model / "model.safetensors"
    weights = load_file(file)
    name = [n for n, w in weights.items() if w.dim() == 2][-1]
    weights[name][0, 0] = float("nan")
    save_file(weights, file, {"format": "pt"})
