"""`Adapter`: a few values trained beside frozen weights, through PEFT; merged, or kept by themselves.

LoRA (Hu et al. 2022), AdaLoRA, which gives more rank to the layers that need it (Zhang et al. 2023), DoRA,
which learns length and direction apart (Liu et al. 2024), and prefix tuning (Li and Liang 2021).
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from negawatt.compress.classifier import BATCH, TEXTS_A_STEP, WINDOWS_A_STEP, check_encoder, require_labels
from negawatt.compress.draft import ADAPTER
from negawatt.compress.head import give_head
from negawatt.compress.labelled import labelled
from negawatt.compress.network import Network
from negawatt.compress.parameter import Parameter
from negawatt.compress.recovery import Lesson, step_of
from negawatt.compress.source import Source
from negawatt.compress.technique import Pass, Work
from negawatt.compress.text_model import TextModel
from negawatt.compress.training import chosen, losses, train
from negawatt.errors import UsageError, require

if TYPE_CHECKING:
    import torch

UNMERGEABLE = ("prefix",)
_ALLOCATOR = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class Adapter(Pass):
    """Train an adapter on the text."""

    name: ClassVar[str] = "adapter"
    summary: ClassVar[str] = "train an adapter on text or on labels, to be merged or kept beside the model"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("kind", "lora", "what is trained", choices=("lora", "adalora", "dora", "prefix")),
        Parameter("merge", True, "put it into the weights; false: the weights stay, and the adapter lies in "
                  "adapter/ beside them"),
        Parameter("rank", 16, "rank of the additions, or tokens of a prefix", low=1, search=(4, 16)),
        Parameter("steps", 64, "training steps", low=1, search=(64, 256)),
        BATCH,
        Parameter("rate", 1e-3, "highest learning rate", low=0.0, high=1.0, open=True, search=(3e-4, 1e-3)),
        Parameter("precision", "bfloat16", "of the arithmetic while training",
                  choices=("bfloat16", "float32")),
    )  # fmt: skip
    calibrated: ClassVar[bool] = True

    def check(self, source: Source) -> None:
        network = Network(source)
        network.refuse_encoder_decoder(self.name, "and adapters are trained on one of them alone")
        require("peft", extra="adapters")
        if self.values["merge"] and self.values["kind"] in UNMERGEABLE:
            raise UsageError(
                f"adapter: a {self.values['kind']} is no change of weights and cannot be merged; add "
                "merge=false to keep it beside the model"
            )
        if not network.is_decoder:
            check_encoder(source, self.name, 0)
            if self.values["kind"] == "prefix":
                raise UsageError(f"adapter: a prefix is for decoders, and {source.name} is an encoder")

    def apply(self, work: Work) -> None:
        if not work.network().is_decoder:
            require_labels(work, self.name)
            texts, _ = labelled(work.text, work.seed)
            give_head(work.draft, work.source, texts.names, work.seed)
        if work.draft.kept("adapter") is None:
            self._train(work)
        steps = self.values["steps"]
        work.draft.outcome |= losses(work.draft, steps) | (work.draft.kept("adapter") or {})["outcome"]
        if not self.values["merge"]:
            files = (work.draft.kept("adapter") or {})["files"]
            work.draft.files |= files
            work.draft.beside[f"{ADAPTER}/adapter_model.safetensors"] = work.draft.aside("adapter")
            work.draft.notes.append(
                f"the adapter lies unmerged in {ADAPTER}/, for PEFT; engines here run the weights without it"
            )

    def _train(self, work: Work) -> None:
        import torch

        values = self.values
        source = work.draft.as_source(work.source)
        network = Network(source)
        with network.whole(torch.float32) as model, _quiet():
            adapted = self._adapted(model, network, work)
            learnt = {f"adapter|{n}": p for n, p in adapted.named_parameters() if p.requires_grad}
            companion = _Ranks(adapted) if values["kind"] == "adalora" else None
            train(
                work.draft, learnt, self._step(adapted, work, source), steps=values["steps"],
                rate=values["rate"], progress=work.progress, companion=companion,
            )  # fmt: skip
            outcome = {"trained_values": sum(p.numel() for p in learnt.values())}
            if companion is not None:
                outcome["ranks"] = companion.ranks()
            if values["merge"]:
                put = _merged(adapted, network)
                stored = {name: source.as_stored(name, value) for name, value in put.items()}
                work.draft.keep("adapter", stored, facts={"outcome": outcome})
            else:
                files, tensors = _exported(adapted, work.source)
                work.draft.keep("adapter", aside=tensors, facts={"outcome": outcome, "files": files})

    def _step(self, adapted: Any, work: Work, source: Source) -> Callable[[int], float]:
        """A training step on windows of text, or on labelled texts."""
        import torch

        values, is_decoder = self.values, work.network().is_decoder
        batch = values["batch"] or (WINDOWS_A_STEP if is_decoder else TEXTS_A_STEP)
        if is_decoder:
            steps, rate, precision = values["steps"], values["rate"], values["precision"]
            return step_of(adapted, work, Lesson(None, 1.0, 1, 0.0, 1.0, steps, batch, rate, precision), {})
        texts, _ = labelled(work.text, work.seed)
        model = TextModel(source, half=values["precision"] == "bfloat16")
        rows, answers = texts.encoded(source), torch.tensor(texts.answers)

        def step(number: int) -> float:
            places = chosen(number, batch, len(rows), work.seed)
            logits, _ = model.run(adapted, [rows[i] for i in places])
            loss = torch.nn.functional.cross_entropy(logits, answers[places])
            loss.backward()
            return float(loss.detach())

        return step

    def _adapted(self, model: Any, network: Network, work: Work) -> Any:
        """The model with an untrained adapter, whose values the seed decides."""
        import peft
        import torch

        kind, rank = self.values["kind"], self.values["rank"]
        task = "CAUSAL_LM" if network.is_decoder else "SEQ_CLS"
        if kind == "prefix":
            config = peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=rank)
        else:
            of = {n: path.removesuffix(".weight") for path, n in network.checkpoint_names.items()}
            linears = [each for block in range(len(network.blocks)) for each in network.linears(block)]
            common: dict[str, Any] = {
                "task_type": task, "target_modules": [of[each.name] for each in linears],
                "fan_in_fan_out": any(each.transposed for each in linears), "lora_alpha": 2 * rank,
            }  # fmt: skip
            if kind == "adalora":
                steps = self.values["steps"]
                config = peft.AdaLoraConfig(
                    init_r=rank + rank // 2, target_r=rank, total_step=steps, tinit=steps // 10,
                    tfinal=steps // 4, deltaT=max(1, steps // 20), **common,
                )  # fmt: skip
            else:
                config = peft.LoraConfig(r=rank, use_dora=kind == "dora", **common)
        with torch.random.fork_rng():
            torch.manual_seed(work.seed)
            return peft.get_peft_model(model, config).eval()


class _Ranks:
    """AdaLoRA's choice of ranks, which goes along with the training."""

    def __init__(self, adapted: Any) -> None:
        self._tuner = adapted.base_model
        self._config = self._tuner.peft_config["default"]

    def after(self, step: int) -> None:
        self._tuner.update_and_allocate(step)

    def state(self) -> dict[str, torch.Tensor]:
        import torch

        allocator = self._tuner.rankallocator
        found = {f"{kind}|{n}": t for kind in _ALLOCATOR for n, t in getattr(allocator, kind).items()}
        pattern = self._config.rank_pattern or {}
        return found | {f"kept|{n}": torch.tensor(v, dtype=torch.uint8) for n, v in pattern.items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        allocator = self._tuner.rankallocator
        for kind in _ALLOCATOR:
            known = {n.split("|", 1)[1]: t for n, t in state.items() if n.startswith(f"{kind}|")}
            setattr(allocator, kind, known)
        pattern = {n.split("|", 1)[1]: [bool(x) for x in t.flatten().tolist()] for n, t in state.items()
                   if n.startswith("kept|")}  # fmt: skip
        self._config.rank_pattern = pattern or None

    def ranks(self) -> dict[str, int]:
        """How many ranks each layer kept in the end."""
        pattern = self._config.rank_pattern or {}
        return {name.removesuffix(".lora_E.default"): sum(kept) for name, kept in pattern.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice to programmers, not to users
        yield


def _merged(adapted: Any, network: Network) -> dict[str, torch.Tensor]:
    """The weights with the adapter in them, and a classifier's head, by their names in the checkpoint."""
    names, plain = network.checkpoint_names, adapted.merge_and_unload()
    linears = {each.name for block in range(len(network.blocks)) for each in network.linears(block)}
    prefix = "" if network.is_decoder else f"{network.model.base_model_prefix}."
    return {
        names[path]: parameter.detach()
        for path, parameter in plain.named_parameters()
        if names[path] in linears or not path.startswith(prefix)
    }


def _exported(adapted: Any, source: Source) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """The adapter in PEFT's own form: small files by name, and its tensors."""
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        adapted.save_pretrained(folder, safe_serialization=True)
        config = json.loads(Path(folder, "adapter_config.json").read_text("utf-8"))
        tensors = load_file(Path(folder, "adapter_model.safetensors"))
    config["base_model_name_or_path"] = source.name
    for key, value in config.items():
        if key == "target_modules" and isinstance(value, list):
            config[key] = sorted(value)  # PEFT keeps a set, whose order changes from run to run
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    return {f"{ADAPTER}/adapter_config.json": text}, {n: t.contiguous() for n, t in tensors.items()}
