"""A space as a file: what it narrows and adds, and a sentence for everything that is wrong in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from negawatt.errors import UsageError
from negawatt.tuning import Space
from negawatt.tuning.pass_range import PassRange
from negawatt.tuning.space_file import models_of, read_space

DEFAULT = Space(("llamacpp", "transformers"), (1,), (1, 2), 512, {"llamacpp": ("native", "q8_0")})


def written(folder: Path, text: str) -> Path:
    file = folder / "space.toml"
    file.write_text(text, "utf-8")
    return file


def test_what_a_file_does_not_mention_stays(tmp_path: Path) -> None:
    assert read_space(written(tmp_path, "schema = 1"), DEFAULT) == DEFAULT


def test_a_file_narrows_and_extends(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        """
        schema = 1
        models = ["other", "./third"]
        engines = ["llamacpp"]
        threads = [4, 1]
        batches = [8]
        max_context = 256
        speculation = ["none"]
        flash_attention = ["on", "off"]
        [weight_formats]
        llamacpp = ["q4_0"]
        [kv_caches]
        llamacpp = ["default"]
        [[pass]]
        name = "depth"
        ratio = [0.1, 0.2]
        order = "contiguous"
        [[pass]]
        name = "rtn"
        bits = 4
        group = 32
        symmetric = true
        embeddings = 8
        required = true
        """,
    )
    space = read_space(file, DEFAULT)
    assert models_of(file) == ("other", "./third")
    points = list(space.grid())
    assert len(points) == len(set(points)) == 2 * 2 * 3  # threads × flash × (no depth, 0.1, 0.2)
    assert {p.settings.weight_format for p in points} == {"native"}, "packed weights run as they are"
    assert {p.passes for p in points} == {
        ("rtn",), ("depth:ratio=0.1,order=contiguous", "rtn"), ("depth:order=contiguous", "rtn"),
    }  # fmt: skip
    for point in points:
        chosen = space.parameters(point)
        assert space.pick(lambda name, _, chosen=chosen: chosen[name]) == point


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "schema must be a whole number"),
        ("schema = 2", "newer than this Negawatt"),
        ("schema = 1\nsteam = 3", "unknown key 'steam'"),
        ("schema = 1\nengines = ['steam']", "no engine is called 'steam'"),
        ("schema = 1\nengines = []", "engines must be a list of words"),
        ("schema = 1\nthreads = [0]", "threads must be a list of whole numbers from 1 up"),
        ("schema = 1\nthreads = 2", "threads must be a list"),
        ("schema = 1\nbatches = [true]", "batches must be a list"),
        ("schema = 1\nmax_context = [2, 3]", "max_context must be a whole number"),
        ("schema = 1\nspeculation = ['draft']", "'draft' is not among them"),
        ("schema = 1\ncores = ['warm']", "'warm' is not among them"),
        ("schema = 1\nthreads = [9999]\ncores = ['compact']", "no others than all of them"),
        ("schema = 1\nthreads = [99999]", "threads must be at most"),
        ("schema = 1\nengines = ['openvino']\n[kv_caches]\nllamacpp = ['q8_0']", "not among the engines"),
        ("schema = 1\nweight_formats = 3", "must be a section"),
        ("schema = 1\n[weight_formats]\nllamacpp = ['q3']", "'q3' is not among them"),
        ("schema = 1\n[kv_caches]\nsteam = ['q3']", "no engine is called 'steam'"),
        ("schema = 1\npass = 'rtn'", "written as"),
        ("schema = 1\n[[pass]]\nbits = 4", "needs a name"),
        ("schema = 1\n[[pass]]\nname = 'melt'", "no pass is called 'melt'"),
        ("schema = 1\n[[pass]]\nname = 'rtn'\nheat = 3", "no parameter 'heat'"),
        ("schema = 1\n[[pass]]\nname = 'rtn'\nbits = 5", "bits must be one of"),
        ("schema = 1\n[[pass]]\nname = 'rtn'\nbits = []", "needs at least one value"),
        ("schema = 1\n[[pass]]\nname = 'rtn'\nrequired = 1", "required must be true or false"),
        ("schema = 1\n[[pass]]\nname = 'rtn'\n[[pass]]\nname = 'rtn'", "given twice"),
        ("schema = [", "not TOML"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        read_space(written(tmp_path, text), DEFAULT)
    assert "space.toml" in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        read_space(tmp_path / "none.toml", DEFAULT)


@pytest.mark.parametrize(
    ("text", "says"),
    [("rtn:bits", "a pass is written"), ("rtn:bits=4,bits=8", "each key once"), ("melt", "no pass"),
     ("rtn:bits=4|5", "bits must be one of")],
)  # fmt: skip
def test_a_pass_on_the_command_line_is_checked(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        PassRange.parse(text)


def test_a_pass_on_the_command_line_has_its_values() -> None:
    found = PassRange.parse("vocabulary:common=0|4096")
    assert dict(found.ranges)["common"] == (0, 4096)
    assert found.variants() == ["vocabulary:common=0", "vocabulary"]


def test_passes_are_offered_only_where_their_result_runs() -> None:
    passes = (
        PassRange.parse("rtn:bits=4,group=32,symmetric=true,embeddings=8"),
        PassRange.parse("svd:ratio=0.1"),
    )
    space = Space(("llamacpp", "transformers"), (1,), (1,), 512, {}, passes=passes, speculation=("none",))
    made = {(p.settings.engine, p.names) for p in space.grid()}
    assert made == {
        ("llamacpp", ()), ("llamacpp", ("rtn",)), ("transformers", ()), ("transformers", ("svd",)),
    }  # fmt: skip
    assert all("native" not in p.settings.weight_format for p in space.grid() if p.names == ("svd",))
