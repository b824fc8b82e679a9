"""`Vocabulary`: drop the tokens that a workload never uses, from tokenizer, embedding and head.

The head of a small model is a fifth of its work. Texts of the workload keep their tokens, which is
checked on all of them, and answers of the workload stay the same: the rows that are left are untouched,
so the likeliest token is still the likeliest as long as it was kept. Perplexity falls a little, because
the probability of what was dropped goes to what is left; that is no gain in quality.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from negawatt.artifact import Tokenizer
from negawatt.artifact.packed_file import PackedTensor
from negawatt.artifact.safetensors_file import read_json
from negawatt.compress.answers import BATCH, answers, choices
from negawatt.compress.draft import Draft, Quantized
from negawatt.compress.effect import Effect, Situation
from negawatt.compress.lexicon import Lexicon, named_ids, with_new_ids
from negawatt.compress.network import Network
from negawatt.compress.parameter import Parameter
from negawatt.compress.source import Source
from negawatt.compress.technique import Pass, Work
from negawatt.compress.usage import Usage
from negawatt.errors import ArtifactError, Infeasible, IntegrityError, WorkloadError

if TYPE_CHECKING:
    import torch

CONFIGS = ("generation_config.json", "tokenizer_config.json")
SUPERSEDED = (
    "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model",
)  # fmt: skip
"""Older files of the same tokenizer, which would still hold the old ids."""
TIE = 1e-3
"""Logits closer than this may change places with the order of a sum."""


class Vocabulary(Pass):
    """Keep the tokens that the workload reads and writes, and those that spell any other text."""

    name: ClassVar[str] = "vocabulary"
    summary: ClassVar[str] = "drop tokens that the workload never uses"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("common", 4096, "also keep this many of the tokenizer's commonest tokens", low=0,
                  search=(0, 4096, 16384)),
        Parameter("runners_up", 4, "at each token written, keep this many that nearly were", low=0),
    )  # fmt: skip
    reads_usage: ClassVar[bool] = True

    def check(self, source: Source) -> None:
        Lexicon(source.tokenizer.definition)
        network = Network(source)
        network.refuse_encoder_decoder(self.name, "and its answers are not compared yet")
        _tables(network)

    def effect(self, at: Situation) -> Effect:
        left = min(1.0, self.values["common"] / at.shape.vocab)
        work = at.work_factor(1.0, left)
        why = f"at most, if the workload needs no more than the {self.values['common']:,} commonest tokens"
        return Effect(at.bytes_factor(1.0, left), work, work, why=why)

    def apply(self, work: Work) -> None:
        usage = Usage.of(work.source, work.text, work.seed)
        lexicon = Lexicon(work.source.tokenizer.definition)
        network = work.network()
        written = self._answered(work, usage, network) if network.is_decoder else []
        kept = self._kept(work, usage, lexicon)
        draft = work.draft
        draft.kept_tokens = kept
        draft.outcome = {"tokens_before": int(work.source.config["vocab_size"]), "tokens": len(kept)}
        _rewrite(work.source, draft, lexicon, kept)
        if draft.kept("rows") is None:
            work.progress(1, None, f"keeping {len(kept):,} tokens")
            draft.keep("rows", {name: _rows(work.source, name, kept) for name in _tables(network)})
        if draft.kept("proof") is None:
            _prove_texts(work, usage, kept)
            draft.keep("proof", facts=_prove_answers(work, usage, written, kept))
        draft.outcome |= draft.kept("proof") or {}

    def _answered(self, work: Work, usage: Usage, network: Network) -> list[list[int]]:
        """Answers to every prompt of the workload, a batch a step."""
        prompts = usage.written(work.source.tokenizer)
        longest = max((len(tokens) + n for tokens, n in prompts), default=0)
        if longest > (limit := getattr(network.model.config, "max_position_embeddings", longest)):
            raise WorkloadError(
                f"a prompt and its answer hold {longest} tokens, and {work.source.name} was made for "
                f"{limit}; take it out of the workload, or ask for a shorter answer"
            )
        starts = range(0, len(prompts), BATCH)
        left = [start for start in starts if work.draft.kept(f"answers {start}") is None]
        if left:
            import torch

            with network.whole(torch.float32) as model:
                for start in left:
                    work.progress(start, len(prompts), "writing the workload's answers")
                    found = answers(model, prompts[start : start + BATCH], self.values["runners_up"])
                    facts = {"tokens": found.tokens, "near": sorted(found.near)}
                    work.draft.keep(f"answers {start}", facts=facts)
        steps = [work.draft.kept(f"answers {start}") or {} for start in starts]
        return [row for step in steps for row in step["tokens"]]

    def _kept(self, work: Work, usage: Usage, lexicon: Lexicon) -> list[int]:
        """The tokens that stay, in ascending order."""
        if (known := work.draft.kept("texts")) is None:
            work.progress(0, None, "reading the workload")
            source = work.source
            used = {token for row in usage.encodings(source.tokenizer) for token in row}
            used |= set(sorted(lexicon.ids.values())[: self.values["common"]])
            used |= named_ids(source.config)
            for name in CONFIGS:
                used |= named_ids(_json(source.folder / name))
            step = 0
            while (answered := work.draft.kept(f"answers {step}")) is not None:
                used |= set(answered["near"])
                step += BATCH
            n_rows = int(source.config["vocab_size"])
            kept = lexicon.closed(used)
            if kept[-1] >= n_rows:
                raise ArtifactError(
                    f"the tokenizer of {source.name} has the token {kept[-1]}, and its embedding "
                    f"{n_rows} rows; fetch or make the model again"
                )
            if len(kept) == n_rows:
                raise Infeasible(f"the workload uses every token of {source.name}; nothing can be dropped")
            work.draft.keep("texts", facts={"kept": kept})
            return kept
        return list(known["kept"])


# -- the weights -------------------------------------------------------------------------------------


def _tables(network: Network) -> list[str]:
    """The tensors with a row for each token: embedding, head, and the head's bias.

    Raises:
        ArtifactError: the model has other tables that go by tokens.
    """
    model, vocab = network.model, int(network.source.config["vocab_size"])
    ends = [e for e in (model.get_input_embeddings(), model.get_output_embeddings()) if e is not None]
    paths = [path for path, module in model.named_modules() if any(module is end for end in ends)]
    named = {n for p, n in network.outer.items() if p.rpartition(".")[0] in paths}
    tensors = network.source.tensors
    inner = {name for i in range(len(network.blocks)) for name in network.names(i).values()}
    for name, tensor in tensors.items():
        if name in inner or tensor.shape[:1] != (vocab,) or name in named:
            continue
        if len(tensor.shape) > 1 and not name.endswith(("lm_head.weight", "decoder.weight")):
            raise ArtifactError(
                f"{network.source.name}: {name} has a row for each token too, and vocabulary knows only "
                "embeddings and heads"
            )
        named.add(name)
    return sorted(n for n in named if tensors[n].shape[0] == vocab)


def _rows(source: Source, name: str, kept: list[int]) -> torch.Tensor | Quantized:
    """The rows of a tensor that are kept, as they are stored."""
    import torch

    tensor = source.tensors[name]
    if not isinstance(tensor, PackedTensor):
        return source.as_stored(name, source.tensor(name)[kept])
    scales = torch.from_numpy(tensor.scales.raw().copy())[kept]
    offsets = None if tensor.offsets is None else torch.from_numpy(tensor.offsets.raw().copy())[kept]
    codes = torch.from_numpy(tensor.unpacked()[kept])
    return Quantized(codes, scales, offsets, tensor.bits, tensor.group, tensor.dtype)


# -- the files ---------------------------------------------------------------------------------------


def _json(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.is_file() else {}


def _rewrite(source: Source, draft: Draft, lexicon: Lexicon, kept: list[int]) -> None:
    draft.config = with_new_ids({**source.config, "vocab_size": len(kept)}, kept)
    draft.files["tokenizer.json"] = json.dumps(lexicon.cut(kept), ensure_ascii=False)
    for name in CONFIGS:
        if content := _json(source.folder / name):
            draft.files[name] = json.dumps(with_new_ids(content, kept), indent=2, ensure_ascii=False) + "\n"
    draft.files |= {name: None for name in SUPERSEDED if (source.folder / name).is_file()}


def reread(source: Source, draft: Draft) -> Tokenizer:
    """The tokenizer that will be read from the draft's files."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in ("config.json", "tokenizer.json", "chat_template.jinja", *CONFIGS):
            if (source.folder / name).is_file():
                (folder / name).write_bytes((source.folder / name).read_bytes())
        (folder / "config.json").write_text(json.dumps(draft.config), "utf-8")
        for name, content in draft.files.items():
            if content is not None:
                (folder / name).write_text(content, "utf-8")
        return Tokenizer.from_checkpoint(folder)


# -- the proofs --------------------------------------------------------------------------------------


def _prove_texts(work: Work, usage: Usage, kept: list[int]) -> None:
    """Every text of the workload becomes the same tokens under their new numbers.

    Raises:
        IntegrityError: one does not.
    """
    work.progress(0, None, "checking the texts")
    tokenizer = reread(work.source, work.draft)
    before = usage.encodings(work.source.tokenizer)
    for old, new in zip(before, usage.encodings(tokenizer), strict=True):
        if old != [kept[i] for i in new]:
            text = work.source.tokenizer.decode(old)[:60]
            raise IntegrityError(
                f"{work.source.name}: a text would be cut into other tokens without those dropped: {text!r}; "
                "its tokenizer is of a kind that cannot be cut"
            )


def _prove_answers(work: Work, usage: Usage, written: list[list[int]], kept: list[int]) -> dict[str, Any]:
    """Source and result choose the same token at every place of every answer.

    Raises:
        IntegrityError: they differ by more than rounding.
    """
    import torch

    if not written:
        return {}
    draft, back = work.draft, torch.tensor(kept)
    table = {old: new for new, old in enumerate(kept)}
    expected: list[torch.Tensor] = []
    prompts = [tokens for tokens, _ in usage.written(work.source.tokenizer)]
    pairs = list(zip(prompts, written, strict=True))
    with work.network().whole(torch.float32) as model:
        for n, (prompt, answer) in enumerate(pairs):
            work.progress(n, 2 * len(pairs), "checking the answers")
            expected.append(choices(model, prompt, answer).argmax(-1))
    places = 0
    with Network(draft.as_source(work.source)).whole(torch.float32) as model:
        for n, (prompt, answer) in enumerate(pairs):
            work.progress(len(pairs) + n, 2 * len(pairs), "checking the answers")
            logits = choices(model, [table[i] for i in prompt], [table[i] for i in answer])
            places += len(answer)
            differ = back[logits.argmax(-1)] != expected[n]
            for at in differ.nonzero().flatten().tolist():
                wanted = table.get(int(expected[n][at]))
                if wanted is None or logits[at].max() - logits[at, wanted] > TIE:
                    raise IntegrityError(
                        f"{work.source.name} would answer otherwise without the dropped tokens; keep more, "
                        "with runners_up or common"
                    )
    return {"answers": len(pairs), "answer_tokens": places}
