"""Small random models of every family, as checkpoints that `Artifact.open` reads: for tests of passes.

Their weights are drawn, not trained, so they are no measure of quality; their shapes have everything that
trips a pass: grouped-query attention, tied and untied heads, biases, norms on queries, transposed matrices.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TEXT = """The kettle hums before the house is awake. Someone has left a note beside it, and the note says
that the train runs at nine, that the bread is in the drawer, and that the cat has been fed. Nobody reads it.
Rain begins over the harbour; the boats knock against each other, and a gull walks along the wall as if it
were counting stones. By noon the market is full. A woman sells pears from a cart, three for a coin, and
tells every child who asks that pears were once the size of houses. The children believe her until evening.
"""
"""Enough English for a tokenizer of a few hundred pieces."""

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3_text", "gpt2", "bert", "mpnet", "t5", "marian")
ENCODER_DECODERS = ("t5", "marian")
MORE_FAMILIES = (
    "roberta", "xlm-roberta", "electra", "distilbert", "modernbert", "mistral", "phi3", "gpt_neox", "opt",
    "bart",
)  # fmt: skip
"""Families that passes walk through likewise; a contract of all passes on all of them would take long."""

_DECODER: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "tie_word_embeddings": True,
}  # fmt: skip
_ENCODER: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 130,
}  # fmt: skip
_T5: dict[str, Any] = {
    "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4,
    "decoder_start_token_id": 0,
}  # fmt: skip
_TRANSLATOR: dict[str, Any] = {
    "d_model": 64, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 128,
    "decoder_start_token_id": 0, "forced_eos_token_id": 0,
}  # fmt: skip
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", _DECODER),
    "qwen2": ("Qwen2ForCausalLM", {**_DECODER, "tie_word_embeddings": False}),
    "qwen3": ("Qwen3ForCausalLM", _DECODER),
    "gemma3_text": ("Gemma3ForCausalLM", {**_DECODER, "sliding_window": 16}),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128}),
    "bert": ("BertModel", _ENCODER),
    "mpnet": ("MPNetModel", _ENCODER),
    "t5": ("T5ForConditionalGeneration", _T5),
    "marian": ("MarianMTModel", _TRANSLATOR),
    "roberta": ("RobertaModel", _ENCODER),
    "xlm-roberta": ("XLMRobertaModel", _ENCODER),
    "electra": ("ElectraModel", {**_ENCODER, "embedding_size": 64}),
    "distilbert": ("DistilBertModel", {"dim": 64, "hidden_dim": 128, "n_layers": 3, "n_heads": 4}),
    "modernbert": ("ModernBertModel", _ENCODER),
    "mistral": ("MistralForCausalLM", _DECODER),
    "phi3": ("Phi3ForCausalLM", _DECODER),
    "gpt_neox": ("GPTNeoXForCausalLM", _ENCODER),
    "opt": ("OPTForCausalLM", {**_DECODER, "ffn_dim": 128, "word_embed_proj_dim": 64}),
    "bart": ("BartForConditionalGeneration", _TRANSLATOR),
}


def small_model(
    folder: Path, family: str = "llama", seed: int = 0, *, labels: Sequence[str] = (), **changes: Any
) -> Path:
    """Write a random model of a family into `folder`, with a tokenizer trained on `TEXT`.

    Args:
        folder: where to write; made when absent.
        family: one of `FAMILIES` or `MORE_FAMILIES`.
        seed: of the weights.
        labels: of an encoder what its head tells apart; no head without them.
        changes: fields of its config.json.
    """
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    n_tokens = _tokenizer(folder)
    name, content = _CONFIGS[family]
    if labels:
        name = name.replace("Model", "ForSequenceClassification")
        changes |= {"id2label": dict(enumerate(labels)), "label2id": {v: k for k, v in enumerate(labels)}}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = transformers.AutoConfig.for_model(
        family, **{**content, **ends, "vocab_size": n_tokens, **changes}
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, name)(config)
        for weight in model.parameters():  # wider than an untrained model's, so that layers matter
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.12)
    model.save_pretrained(folder, safe_serialization=True)
    return folder


def _tokenizer(folder: Path) -> int:
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=416, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    content = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(content), "utf-8")
    return int(-(-tokenizer.get_vocab_size() // 32) * 32)
