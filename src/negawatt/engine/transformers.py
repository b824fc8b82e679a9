"""`TransformersBackend`: PyTorch and transformers, the reference for quality.

It runs the model's own code eagerly with scaled-dot-product attention and the library's own growing
cache: what `model.generate` does, without what that does around it. The baseline that savings are
counted from is therefore stock transformers, not a straw man.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from negawatt.artifact import Artifact
from negawatt.artifact.pooling import pooling_of
from negawatt.engine import classifier, embedder, factored, quiet, rounded_inputs, torch_placement
from negawatt.engine.backend import Backend, Chunk, Logits
from negawatt.engine.device import Device
from negawatt.engine.lockstep import Lockstep, rows_of
from negawatt.errors import EngineError, UnsupportedSetting, installed_version, require


class TransformersBackend(Backend):
    """Any causal language model that transformers has code for, any classifier of texts and any encoder.

    Layers that an artifact holds as two factors run as two layers; where it rounds inputs, they are
    rounded here too.

    Weight formats: ``native`` is the precision the checkpoint is stored in; ``fp32`` and ``bf16``
    convert it. There is no ``int8``: torch's dynamic quantization has one scale for all activations
    of a layer, which takes SmolLM2-135M from perplexity 25 to 84.
    """

    name: ClassVar[str] = "transformers"
    weight_formats: ClassVar[tuple[str, ...]] = ("native", "fp32", "bf16")
    plain_formats: ClassVar[tuple[str, ...]] = weight_formats
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    has_gpu_layers: ClassVar[bool] = True
    has_speculation: ClassVar[bool] = True
    classifies: ClassVar[bool] = True
    embeds: ClassVar[bool] = True

    @classmethod
    def version(cls) -> str:
        """Versions of transformers and torch, for example ``5.23.0 (torch 2.13.0+cpu)``."""
        torch = installed_version("torch", extra="transformers")
        return f"{installed_version('transformers', extra='transformers')} (torch {torch})"

    @classmethod
    def accelerators(cls) -> list[Device]:
        """NVIDIA's and AMD's, which torch both calls ``cuda``."""
        return torch_placement.accelerators()

    @classmethod
    def prepare(cls, artifact_path: Path, weight_format: str, cache: Path) -> Path:
        artifact = Artifact.open(artifact_path)
        checkpoint = artifact.checkpoint()
        if not classifier.labels_of(checkpoint) and pooling_of(checkpoint) is None:
            _refuse_unknown_architecture(checkpoint)
        special = factored.factors(artifact.path) or rounded_inputs.rounding_of(artifact.path)
        return artifact.path if special else checkpoint

    def load(self, path: Path) -> None:
        torch, transformers = require("torch", extra="transformers"), _transformers()
        if self.settings.threads is not None:
            torch.set_num_threads(self.settings.threads)
        split, rounding = factored.factors(path), rounded_inputs.rounding_of(path)
        path = Artifact.open(path).checkpoint() if split or rounding else path
        self._torch = torch
        self.labels = classifier.labels_of(path)
        self.pooling = pooling_of(path, self.settings.pooling)
        maker = encoder_of if self.pooling else classifier_of if self.labels else causal_lm
        self._model = maker(path, self.settings.weight_format)
        self._n_factored = factored.install(self._model, split)
        self._n_rounded = rounded_inputs.install_all(self._model, rounding)
        with _translated(f"place {path} on {self.settings.device}"):
            self._place = torch_placement.place(self._model, self.settings)
        if self.pooling:
            self.labels, self.vocab_size = (), embedder.width(self._model, self.pooling)
            return
        if self.labels:
            self.vocab_size = len(self.labels)
            return
        self._new_cache = transformers.DynamicCache
        self._cache: Any = None
        self._batch = Lockstep()
        self.vocab_size = int(self._model.get_output_embeddings().weight.shape[0])

    def forward(self, chunks: Sequence[Chunk]) -> list[Logits]:
        if self.labels or self.pooling:
            with _translated("run the model"):
                if self.pooling:
                    return embedder.forward(self._model, chunks, self.pooling)
                return classifier.forward(self._model, chunks)
        torch, step = self._torch, self._batch.step(chunks)
        with _translated("run the model"), torch.inference_mode():
            if step.fresh:
                self._cache = self._new_cache(config=self._model.config)
            elif step.reordered:
                self._cache.batch_select_indices(torch.from_numpy(step.kept).long())
            at = self._place.inputs
            # Without padding both default to what they would be, and attention needs no mask at all.
            layout = {}
            if step.padded:
                layout["attention_mask"] = torch.from_numpy(step.mask).to(at)
                layout["position_ids"] = torch.from_numpy(step.positions).to(at)
            logits = self._model(
                input_ids=torch.from_numpy(step.tokens).to(at),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=step.wanted,  # the head is the dearest matrix: skip it in the prompt
                **layout,
            ).logits
            return rows_of(logits.float().cpu().numpy(), chunks)

    def release(self, slot: int) -> None:
        if not self.pooling:
            self._batch.release(slot)

    def truncate(self, slot: int, length: int) -> None:
        if self.settings.batch > 1:
            raise UnsupportedSetting(f"{self.name} takes tokens back at batch 1 only")
        self._cache.crop(-self._batch.truncate(length))

    def info(self) -> dict[str, object]:
        """Keys: ``version``, ``isa``, ``threads``, ``dtype``, ``attention``, ``architecture``,
        ``factored``, how many layers run as two, ``rounded``, how many round their inputs, and on another
        device those of `TorchPlacement.info`."""
        return {
            "version": self.version(),
            "isa": self._torch.backends.cpu.get_cpu_capability(),
            "threads": self._torch.get_num_threads(),
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "attention": self._model.config._attn_implementation,
            "architecture": type(self._model).__name__,
            "factored": self._n_factored,
            "rounded": self._n_rounded,
            **self._place.info,
        }


def causal_lm(checkpoint: Path, weight_format: str) -> Any:
    """The model of a checkpoint folder, ready to infer, in ``native``, ``fp32`` or ``bf16`` weights.

    Raises:
        MissingDependency: torch or transformers is not installed.
        EngineError: the library has no code for the model, or its files are damaged or too few.
    """
    _refuse_unknown_architecture(checkpoint)
    return _loaded(_transformers().AutoModelForCausalLM, checkpoint, weight_format)


def classifier_of(checkpoint: Path, weight_format: str) -> Any:
    """As `causal_lm`, a model with a classification head; some, such as MPNet, have only eager attention."""
    return _loaded(
        _transformers().AutoModelForSequenceClassification, checkpoint, weight_format, attention=None
    )


def encoder_of(checkpoint: Path, weight_format: str) -> Any:
    """As `causal_lm`, a model up to its last hidden states, without any head."""
    model = _loaded(_transformers().AutoModel, checkpoint, weight_format, attention=None)
    model.config.use_cache = False
    return model


def _loaded(maker: Any, checkpoint: Path, weight_format: str, attention: str | None = "sdpa") -> Any:
    torch = require("torch", extra="transformers")
    dtype = {"native": "auto", "fp32": torch.float32, "bf16": torch.bfloat16}[weight_format]
    with _translated(f"load {checkpoint}"):
        model, report = maker.from_pretrained(
            checkpoint,
            dtype=dtype,
            attn_implementation=attention,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    # A pooler is a head on the first token that embeddings make no use of, and some files lack it.
    if missing := sorted(name for name in report["missing_keys"] if not name.startswith("pooler.")):
        raise EngineError(
            f"{checkpoint} lacks {len(missing)} tensors of its architecture, the first being {missing[0]}; "
            "fetch or make the checkpoint again"
        )
    return model.eval()


def _transformers() -> Any:
    return quiet.transformers(extra="transformers")


def _refuse_unknown_architecture(checkpoint: Path) -> None:
    """Raise `EngineError` unless transformers itself has a causal language model for the checkpoint."""
    transformers = _transformers()
    mapping = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    with _translated(f"read {checkpoint / 'config.json'}"):
        config, _ = transformers.PreTrainedConfig.get_config_dict(checkpoint, local_files_only=True)
    if config.get("model_type") not in mapping:
        raise EngineError(
            f"transformers {transformers.__version__} has no causal language model for "
            f"{config.get('model_type')!r}, the model_type in {checkpoint / 'config.json'}"
        )


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Turn what the libraries raise into an `EngineError` that says what could not be done."""
    import torch
    from safetensors import SafetensorError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice to programmers, not to users
            yield
    except (MemoryError, torch.OutOfMemoryError) as exc:
        raise EngineError(f"transformers cannot {what}: out of memory") from exc
    except SafetensorError as exc:
        raise EngineError(f"transformers cannot {what}: a weight file is damaged ({exc})") from exc
    except (RuntimeError, ValueError, KeyError, OSError, ImportError) as exc:
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        if "can't allocate memory" in reason or "not enough memory" in reason:
            reason = "out of memory"
        raise EngineError(f"transformers cannot {what}: {reason}") from exc
