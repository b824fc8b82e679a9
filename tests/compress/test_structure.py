"""Passes that cut a model's structure: what they keep must run as before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_workload import write_workload

from negawatt.artifact import Artifact
from negawatt.compress import Draft, Recipe, compress, parse
from negawatt.compress.lexicon import Lexicon
from negawatt.compress.removal import remove
from negawatt.engine import Engine, Request, Settings
from negawatt.errors import ArtifactError, NegawattError, UsageError, WorkloadError
from negawatt.testing.small_models import TEXT, small_model

OTHER = "Ein Kessel summt; 水 is water, 😀 is not. def f(x): return x**2\n\n\t<|endoftext|> zygote"


def made(model: Path, technique: str, tmp_path: Path, text: str = TEXT * 4) -> Artifact:
    place = tmp_path / "text.txt"
    place.write_text(text, "utf-8")
    recipe = Recipe(str(model), (parse(technique),), str(place), windows=4, heldout=2, length=64, threads=1)
    compress(recipe, tmp_path / "out")
    return Artifact.open(tmp_path / "out")


def logits(folder: Path, tokens: list[int]) -> torch.Tensor:
    import transformers

    with torch.inference_mode():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        found: torch.Tensor = model(torch.tensor([tokens])).logits[0]
        return found


def changed(model: Path, edit: Any) -> None:
    """Edit the weights of a small model."""
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    edit(weights)
    save_file(weights, model / "model.safetensors", {"format": "pt"})


# -- vocabulary --------------------------------------------------------------------------------------


def _byte_fallback() -> tokenizers.Tokenizer:
    """As Llama 2 and Gemma have it: characters, and bytes for the rest."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    back = tokenizers.decoders.Replace("▁", " ")
    trained.decoder = tokenizers.decoders.Sequence(
        [back, tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse(), back]
    )
    trained.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, show_progress=False)
    trained.train_from_iterator([TEXT], trainer)
    content = json.loads(trained.to_str())
    tokens = ["<unk>", *(f"<0x{b:02X}>" for b in range(256)), *content["model"]["vocab"]]
    content["model"] |= {
        "vocab": {t: i for i, t in enumerate(tokens)},
        "byte_fallback": True,
        "unk_token": "<unk>",
    }
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def _wordpiece() -> tokenizers.Tokenizer:
    found = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    found.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    found.decoder = tokenizers.decoders.WordPiece()
    ends = ["[UNK]", "[CLS]", "[SEP]"]
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=300, special_tokens=ends, show_progress=False)
    found.train_from_iterator([TEXT], trainer)
    found.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return found


TOKENIZERS = {"byte fallback": _byte_fallback(), "WordPiece": _wordpiece()}


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(st.sets(st.sampled_from(TEXT.split()), min_size=1, max_size=20))
def test_texts_keep_their_tokens_when_others_are_cut(kind: str, words: set[str]) -> None:
    tokenizer, text = TOKENIZERS[kind], " ".join(sorted(words))
    used = tokenizer.encode(text).ids
    lexicon = Lexicon(tokenizer.to_str())
    kept = lexicon.closed(used)
    small = tokenizers.Tokenizer.from_str(json.dumps(lexicon.cut(kept)))
    assert len(kept) < tokenizer.get_vocab_size()
    assert [kept[i] for i in small.encode(text).ids] == used
    whole = tokenizer.encode(TEXT, add_special_tokens=False)
    cut = small.encode(TEXT, add_special_tokens=False)
    assert "[UNK]" not in cut.tokens and "<unk>" not in cut.tokens
    assert small.decode(cut.ids) == tokenizer.decode(whole.ids)


def test_the_real_tokenizer_is_cut_without_loss(model: Artifact) -> None:
    tokenizer = model.tokenizer
    lexicon = Lexicon(tokenizer.definition)
    used = tokenizer.encode(TEXT)
    kept = lexicon.closed(used)
    assert len(kept) < 1200
    small = tokenizers.Tokenizer.from_str(json.dumps(lexicon.cut(kept)))
    assert [kept[i] for i in small.encode(TEXT).ids] == used
    assert small.decode(small.encode(OTHER).ids, skip_special_tokens=False) == OTHER


def test_a_cut_model_answers_the_same_in_llama_cpp(model: Artifact, tmp_path: Path) -> None:
    source = Artifact.open(small_model(tmp_path / "model", "llama", vocab_size=512))
    out = made(source.path, "vocabulary:common=0", tmp_path)
    kept_rows = out.shape.vocab
    assert kept_rows < 512
    prompt = TEXT[:60]
    new = out.tokenizer.encode(prompt)
    assert out.tokenizer.decode(new) == prompt
    assert out.tokenizer.decode(out.tokenizer.encode(OTHER), skip_special=False) == OTHER
    assert out.tokenizer.eos_ids == {out.tokenizer.encode("<|endoftext|>")[0]}
    rows = {}
    for each in (source, out):
        with Engine(
            each, Settings(engine="llamacpp", max_context=128, threads=1), cache=tmp_path / "c"
        ) as engine:
            tokens = each.tokenizer.encode(prompt)
            rows[each.path] = torch.tensor(engine.distributions(tokens)), tokens
            assert engine.generate([Request(tokens, 4)]).completions[0].tokens
    before, after = (rows[p][0] for p in (source.path, out.path))
    table = [source.tokenizer.encode(out.tokenizer.decode([i], skip_special=False)) for i in range(kept_rows)]
    plain = [(i, ids[0]) for i, ids in enumerate(table) if len(ids) == 1]
    assert len(plain) > 100
    ours = after[:, [i for i, _ in plain]]
    theirs = before[:, [j for _, j in plain]]
    # The same logits, but for what the softmax divides by.
    assert torch.allclose(ours - ours.mean(1, True), theirs - theirs.mean(1, True), atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3_text", "gpt2"])
def test_answers_of_a_workload_are_kept_and_proved(family: str, tmp_path: Path) -> None:
    model = small_model(tmp_path / "model", family, vocab_size=512)
    prompts = (TEXT[:90], TEXT[20:200])
    write_workload(tmp_path, [(prompt, 5 + 4 * i) for i, prompt in enumerate(prompts)])
    technique = parse("vocabulary:common=0,runners_up=1")
    compress(Recipe(str(model), (technique,), str(tmp_path), heldout=1, length=24), tmp_path / "out")
    out = Artifact.open(tmp_path / "out")
    assert out.lineage[-1]["outcome"]["answer_tokens"] == 14
    source = Artifact.open(model)

    def greedy(artifact: Artifact) -> list[int]:
        tokens = artifact.tokenizer.encode(prompts[1])
        for _ in range(9):
            tokens.append(int(logits(artifact.path, tokens)[-1].argmax()))
        return tokens

    # A token of the small model that its tokenizer lacks has no text: compare rows of the embedding.
    from safetensors.torch import load_file

    name = "transformer.wte.weight" if family == "gpt2" else "model.embed_tokens.weight"
    tables = [load_file(a.path / "model.safetensors")[name] for a in (source, out)]
    assert torch.equal(tables[0][greedy(source)], tables[1][greedy(out)])


def test_a_kill_between_answers_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(tmp_path / "model", vocab_size=512)
    write_workload(tmp_path, [(TEXT[i : i + 80], 6) for i in range(3)])
    monkeypatch.setattr("negawatt.compress.vocabulary.BATCH", 1)
    recipe = Recipe(str(model), (parse("vocabulary:common=0"),), str(tmp_path), heldout=1, length=24)
    whole = compress(recipe, tmp_path / "whole")
    keep, kept = Draft.keep, []

    def keep_and_die(draft: Draft, step: str, *args: Any, **keywords: Any) -> None:
        keep(draft, step, *args, **keywords)
        kept.append(step)
        if step == "answers 1":
            raise KeyboardInterrupt

    monkeypatch.setattr(Draft, "keep", keep_and_die)
    with pytest.raises(KeyboardInterrupt):
        compress(recipe, tmp_path / "resumed")
    assert compress(recipe, tmp_path / "resumed")["sha256"] == whole["sha256"]
    assert kept == ["answers 0", "answers 1", "answers 2", "texts", "rows", "proof"]


def test_a_prompt_longer_than_the_model_can_read_is_named(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model", vocab_size=512)
    write_workload(tmp_path, [(TEXT[:200], 1000)])
    recipe = Recipe(str(model), (parse("vocabulary"),), str(tmp_path), heldout=1, length=24)
    with pytest.raises(WorkloadError, match="shorter answer"):
        compress(recipe, tmp_path / "out")


def test_quantized_rows_keep_their_codes(tmp_path: Path) -> None:
    first = made(small_model(tmp_path / "model", "llama", vocab_size=512), "rtn:bits=4,group=32", tmp_path)
    (tmp_path / "out").rename(tmp_path / "first")
    out = made(tmp_path / "first", "vocabulary:common=0", tmp_path)
    assert out.formats == {"packed"}
    assert out.weight_bytes < Artifact.open(tmp_path / "first").weight_bytes
    assert first.name


def test_vocabulary_wants_to_know_what_the_model_is_used_for() -> None:
    with pytest.raises(UsageError, match="name a workload"):
        Recipe("model", (parse("vocabulary"),))


def test_a_tokenizer_that_cannot_be_cut_is_refused() -> None:
    unigram = tokenizers.Tokenizer(tokenizers.models.Unigram([("a", -1.0)]))
    with pytest.raises(ArtifactError, match="Unigram"):
        Lexicon(unigram.to_str())


# -- depth -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["greedy", "contiguous"])
def test_blocks_that_do_nothing_go_first(order: str, tmp_path: Path) -> None:
    model = small_model(tmp_path / "model", "llama", num_hidden_layers=5)

    def idle(weights: dict[str, torch.Tensor]) -> None:
        for number in (1, 2):
            for name in ("self_attn.o_proj", "mlp.down_proj"):
                weights[f"model.layers.{number}.{name}.weight"].zero_()

    changed(model, idle)
    tokens = Artifact.open(model).tokenizer.encode(TEXT)[:50]
    before = logits(model, tokens)
    out = made(model, f"depth:ratio=0.4,order={order}", tmp_path)
    assert sorted(out.lineage[-1]["outcome"]["dropped"]) == [1, 2]
    assert out.shape.n_layers == 3
    assert torch.allclose(logits(out.path, tokens), before, atol=1e-4)


def test_gemma_keeps_each_layer_s_kind_and_gguf_refuses_another_pattern(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model", "gemma3_text", num_hidden_layers=7)

    def idle(weights: dict[str, torch.Tensor]) -> None:
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            weights[f"model.layers.0.{name}.weight"].zero_()

    changed(model, idle)
    out = made(model, "depth:ratio=0.15", tmp_path)
    config = json.loads((out.path / "config.json").read_text())
    assert config["num_hidden_layers"] == 6
    assert config["layer_types"].index("full_attention") == 4
    with pytest.raises(ArtifactError, match="sixth layer"):
        out.gguf()


# -- width -------------------------------------------------------------------------------------------


def test_channels_and_heads_that_do_nothing_go_first(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model", "llama")
    dead = torch.randperm(128, generator=torch.Generator().manual_seed(0))[:32]

    def idle(weights: dict[str, torch.Tensor]) -> None:
        for number in range(3):
            weights[f"model.layers.{number}.mlp.down_proj.weight"][:, dead] = 0
            weights[f"model.layers.{number}.self_attn.o_proj.weight"][:, :32] = 0

    changed(model, idle)
    tokens = Artifact.open(model).tokenizer.encode(TEXT)[:50]
    before = logits(model, tokens)
    out = made(model, "width:ffn=0.25,kv_groups=1", tmp_path)
    assert (out.shape.ffn, out.shape.n_heads, out.shape.n_kv_heads, out.shape.head_dim) == (96, 2, 1, 16)
    assert torch.allclose(logits(out.path, tokens), before, atol=1e-2)
    with Engine(out, Settings(engine="llamacpp", max_context=128, threads=1), cache=tmp_path / "c") as engine:
        found = torch.tensor(engine.distributions(tokens))
    assert torch.allclose(found, logits(out.path, tokens).log_softmax(-1), atol=0.05)


@given(st.integers(0, 100))
def test_refitting_loses_less_than_leaving_the_rest_as_it_is(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(12, 12, generator=generator)
    inputs = torch.randn(200, 12, generator=generator) @ mixed
    weight = torch.randn(5, 12, generator=generator)
    kept, refitted = remove(weight, (inputs.T @ inputs).double(), 3, 2)
    assert len(kept) == 6 and kept.tolist() == sorted(kept.tolist())
    wanted = inputs @ weight.T
    ours = (wanted - inputs[:, kept] @ refitted.T).square().sum()
    plain = (wanted - inputs[:, kept] @ weight[:, kept].T).square().sum()
    best = torch.linalg.lstsq(inputs[:, kept], wanted).solution
    least = (wanted - inputs[:, kept] @ best).square().sum()
    assert least <= ours * 1.001
    assert ours <= plain * 1.001
    assert ours <= least * 1.1 + 1e-3


# -- bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["0", "1", "1.5", "nan", "-0.1", "0.01"])
@pytest.mark.parametrize("technique", ["depth:ratio", "width:ffn"])
def test_bad_ratios_get_a_sentence(technique: str, value: str, tmp_path: Path) -> None:
    model = small_model(tmp_path / "model", "llama")
    with pytest.raises(UsageError) as found:
        made(model, f"{technique}={value}", tmp_path)
    assert "\n" not in str(found.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "technique", "kind"),
    [("gpt2", "width:kv_groups=1", ArtifactError), ("llama", "width:kv_groups=2", UsageError)],
)
def test_heads_that_cannot_go(family: str, technique: str, kind: type[NegawattError], tmp_path: Path) -> None:
    with pytest.raises(kind, match="heads"):
        made(small_model(tmp_path / "model", family), technique, tmp_path)


# -- heal --------------------------------------------------------------------------------------------


def test_healing_brings_a_damaged_model_nearer_to_its_teacher(tmp_path: Path) -> None:
    teacher = small_model(tmp_path / "model", "llama")
    damaged = small_model(tmp_path / "damaged", "llama")

    def shake(weights: dict[str, torch.Tensor]) -> None:
        generator = torch.Generator().manual_seed(1)
        for name, weight in weights.items():
            if name.endswith("down_proj.weight"):
                weight += 0.1 * torch.randn(weight.shape, generator=generator)

    changed(damaged, shake)
    out = made(
        damaged, f"heal:teacher={teacher},steps=60,batch=2,rank=8,rate=0.02,precision=float32", tmp_path
    )
    outcome = out.lineage[-1]["outcome"]
    assert outcome["teacher_sha256"] == Artifact.open(teacher).sha256
    assert outcome["loss_last"] < 0.8 * outcome["loss_first"]
    tokens = Artifact.open(teacher).tokenizer.encode(TEXT)[:60]
    wanted = logits(teacher, tokens).log_softmax(-1)

    def distance(folder: Path) -> float:
        found = logits(folder, tokens).log_softmax(-1)
        return float(torch.nn.functional.kl_div(found, wanted, log_target=True, reduction="batchmean"))

    assert distance(out.path) < 0.8 * distance(damaged)


def test_a_teacher_with_other_tokens_is_refused(tmp_path: Path) -> None:
    teacher = made(small_model(tmp_path / "model", vocab_size=512), "vocabulary:common=0", tmp_path)
    (tmp_path / "out").rename(tmp_path / "teacher")
    with pytest.raises(UsageError, match="other tokens"):
        made(tmp_path / "model", f"heal:teacher={tmp_path / 'teacher'}", tmp_path)
    assert teacher.name
