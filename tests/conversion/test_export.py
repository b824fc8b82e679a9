"""Models in every format: written, read back, compared; and what is refused leaves nothing."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from negawatt import catalog
from negawatt.artifact import Artifact
from negawatt.artifact.packed_file import rows_of
from negawatt.artifact.safetensors_file import read_headers, write_safetensors
from negawatt.catalog.manifest import Manifest
from negawatt.compress import Recipe, compress, parse
from negawatt.conversion import FORMS, conversion, convert
from negawatt.conversion import parse as parse_target
from negawatt.conversion.comparison import Comparison
from negawatt.errors import ArtifactError, UsageError
from negawatt.testing.small_models import TEXT, small_model

for library in ("onnx", "onnxscript", "onnxruntime", "openvino", "torch", "transformers"):
    pytest.importorskip(library)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    catalog.pull("llamacpp")
    return Artifact.open(small_model(tmp_path_factory.mktemp("decoder") / "llama", "llama"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return Artifact.open(small_model(tmp_path_factory.mktemp("encoder") / "bert", "bert"))


def small(place: Path, technique: str) -> Artifact:
    """A small model after a pass."""
    (place / "text.txt").write_text(TEXT * 2, "utf-8")
    small_model(place / "model", "llama")
    recipe = Recipe(
        str(place / "model"), (parse(technique),), text=str(place / "text.txt"), windows=4, heldout=2,
        length=32,
    )  # fmt: skip
    compress(recipe, place / "small", keep_worse=True)
    return Artifact.open(place / "small")


def left(folder: Path) -> list[str]:
    """What a failed export left beside its place."""
    return sorted(p.name for p in folder.iterdir())


EXACT = 1e-3
ENGINES = {"torch-export": "torch-export", "torchscript": "torchscript", "safetensors": "transformers",
           "gguf": "llamacpp", "onnx": "onnxruntime", "openvino": "openvino"}  # fmt: skip


@pytest.mark.parametrize(
    ("to", "kl_nats"),
    [("gguf", EXACT), ("openvino:fp16", 0.05), ("onnx:int8", 0.02), ("torch-export", EXACT),
     ("torchscript", EXACT)],
)  # fmt: skip
def test_a_decoder_is_itself_in_every_format(
    decoder: Artifact, tmp_path: Path, to: str, kl_nats: float
) -> None:
    result = convert(decoder, to, tmp_path / "made")
    name = to.partition(":")[0]
    assert result["format"] == name
    assert result["ran"]["engine"] == ENGINES[name]
    assert 0 <= result["comparison"]["kl_nats"] < kl_nats
    assert result["comparison"]["n_tokens"] == 4 * 16
    if kl_nats == EXACT:
        assert result["comparison"]["greedy"] == 1.0
    assert (tmp_path / "made" / "tokenizer.json").is_file()
    manifest = Manifest.read(tmp_path / "made")
    assert manifest.lineage[-1]["comparison"] == result["comparison"]
    on_disk = {str(p.relative_to(tmp_path / "made")) for p in (tmp_path / "made").iterdir()}
    assert set(manifest.files) == on_disk - {"negawatt.json"}
    assert left(tmp_path) == ["made"]
    if name == "torch-export":
        require_no_pickle(tmp_path / "made" / "model.pt2")


def require_no_pickle(program: Path) -> None:
    with zipfile.ZipFile(program) as archive:
        for name in archive.namelist():
            start = archive.read(name)[:4]
            assert not name.endswith(".pkl")
            assert start[:2] != b"\x80\x02", f"{name} is pickled"
            assert start != b"PK\x03\x04", f"{name} is an archive of pickles"


@pytest.mark.parametrize("to", ["onnx:int8", "openvino:fp16"])
def test_an_encoder_is_itself_where_it_can_be_written(encoder: Artifact, tmp_path: Path, to: str) -> None:
    result = convert(encoder, to, tmp_path / "made")
    assert result["kind"] == "encoder"
    assert result["comparison"]["cosine"] > (0.98 if to == "onnx:int8" else 0.999)


@pytest.mark.parametrize("to", ["openvino:fp16", "safetensors"])
def test_a_classifier_is_itself_where_it_can_be_written(tmp_path: Path, to: str) -> None:
    artifact = Artifact.open(small_model(tmp_path / "bert", "bert", labels=("dull", "fine")))
    result = convert(artifact, to, tmp_path / "made")
    assert result["kind"] == "classifier"
    assert result["comparison"]["kl_nats"] < 0.001
    assert result["comparison"]["same"] == 1.0


def test_safetensors_load_in_an_environment_without_negawatt(decoder: Artifact, tmp_path: Path) -> None:
    result = convert(decoder, "safetensors", tmp_path / "made")
    assert result["comparison"]["kl_nats"] < EXACT
    assert result["comparison"]["greedy"] == 1.0
    script = """if True:
        import sys
        sys.modules["negawatt"] = None  # an import of it fails
        import transformers
        model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
        tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
        tokens = tokenizer("The kettle hums", return_tensors="pt").input_ids
        assert len(model.generate(tokens, max_new_tokens=4, do_sample=False)[0]) == tokens.shape[1] + 4
        try:
            import negawatt
        except ImportError:
            print("clean")
    """
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "made"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout == "clean\n", done.stderr


def test_onnx_of_packed_weights_names_the_kernels_that_ran(tmp_path: Path) -> None:
    artifact = small(tmp_path, "rtn:bits=4,group=32")
    result = convert(artifact, "onnx", tmp_path / "made")
    assert result["ran"]["kernels"]["MatMulNBits"] == 3 * 7 + 1
    (weights,) = (tmp_path / "made").glob("*.data")
    assert weights.stat().st_size < 0.35 * artifact.shape.n_params * 4


REFUSED: list[tuple[str, str, str]] = [
    ("rtn:bits=3,group=32", "gguf", "GGUF has no type for .*: 3 bits in symmetric groups of 32; gguf:f16"),
    ("rtn:bits=3,group=32", "onnx", "ONNX Runtime has no type for .*: 3 bits"),
    ("svd:ratio=0.5", "gguf", "GGUF has no factored matrices, and .* is one of rank"),
]


@pytest.mark.parametrize(("technique", "to", "sentence"), REFUSED)
def test_what_a_format_cannot_hold_is_refused_by_name(
    tmp_path: Path, technique: str, to: str, sentence: str
) -> None:
    artifact = small(tmp_path, technique)
    before = left(tmp_path)
    with pytest.raises(ArtifactError, match=sentence):
        convert(artifact, to, tmp_path / "made")
    assert left(tmp_path) == before


def test_encoders_and_models_with_heads_are_refused_by_name(
    encoder: Artifact, tmp_path: Path, write_config: Callable[..., Artifact]
) -> None:
    with pytest.raises(ArtifactError, match="gguf is written for decoders here, and bert is an encoder"):
        convert(encoder, "gguf", tmp_path / "made")
    headed = write_config(encoder, architectures=["BertForTokenClassification"])
    with pytest.raises(ArtifactError, match="is a BertForTokenClassification; decoders, encoders without"):
        convert(headed, "onnx", tmp_path / "made")
    both = write_config(encoder, architectures=["T5ForConditionalGeneration"], is_encoder_decoder=True)
    with pytest.raises(ArtifactError, match="encoder-decoder, which no format here holds yet"):
        convert(both, "onnx", tmp_path / "made")


@pytest.fixture
def write_config(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    def written(artifact: Artifact, **changes: Any) -> Artifact:
        folder = tmp_path_factory.mktemp("changed")
        for file in artifact.path.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        config = json.loads((folder / "config.json").read_text("utf-8"))
        (folder / "config.json").write_text(json.dumps({**config, **changes}), "utf-8")
        return Artifact.open(folder)

    return written


def test_a_call_that_is_wrong_says_what_there_is(decoder: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no format is called 'pickle'; there are gguf, onnx"):
        parse_target("pickle")
    with pytest.raises(UsageError, match=r"onnx has no type 'q4_0'; it has native, fp32, int8"):
        parse_target("onnx:q4_0")
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        convert(decoder, "safetensors", tmp_path / "there")


def test_every_format_parses_and_has_a_first_type() -> None:
    assert [parse_target(name).form.name for name in FORMS] == list(FORMS)
    assert str(parse_target("openvino:int4")) == "openvino:int4-g32-asym"


def test_what_is_not_its_source_is_not_kept(
    decoder: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint whose weights are changed on the way, as a faulty converter would."""
    whole = conversion._small_files

    def damaging(source: Path, folder: Path) -> None:
        whole(source, folder)
        (file,) = folder.glob("*.safetensors")
        tensors = read_headers(decoder.path)
        rows, metadata = rows_of({n: tensors[n] for n in tensors})
        wrong = [r._replace(values=lambda r=r: r.values() * 9) if "v_proj" in r.name else r for r in rows]
        write_safetensors(file, wrong, metadata)

    monkeypatch.setattr(conversion, "_small_files", damaging)
    with pytest.raises(ArtifactError, match=r"does not say what its source says \(KL .* so nothing was kept"):
        convert(decoder, "safetensors", tmp_path / "made")
    assert left(tmp_path) == []


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(ArtifactError, match="KL nan"):
        Comparison(float("nan"), 0.0, 0.0, 1, 1).require(0.1)


@pytest.mark.parametrize("to", ["safetensors", "torch-export"])
def test_a_full_disk_leaves_nothing(decoder: Artifact, tmp_path: Path, to: str) -> None:
    """A limit on the size of files stands for the disk."""
    out = tmp_path / "out"
    script = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n" + (
        "from negawatt.cli import main; main()"
    )
    arguments = ["export", str(decoder.path), "--to", to, "-o", str(out / "made")]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("negawatt: ")
    assert done.stderr.count("\n") == 1
    assert not out.exists() or left(out) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_the_command_prints_one_document(decoder: Artifact, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from negawatt.cli import main; main()",
        "export",
        str(decoder.path),
        "--to",
        "safetensors",
    ]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "made"), "--json"], capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout)
    assert result["artifact"] == str(tmp_path / "made")
    assert result["predicted_bytes"] == result["source_bytes"]
    assert result["bytes"] == pytest.approx(result["source_bytes"], rel=0.02)  # the header comes on top
    again = subprocess.run([*command, "-o", str(tmp_path / "made")], capture_output=True, text=True)
    assert again.returncode == 2
    assert "exists already" in again.stderr
