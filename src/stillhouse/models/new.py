"""A small model from nothing: its shape, its tokenizer's vocabulary, weights drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    MarianConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
)

from stillhouse.core.config import POSITIONS
from stillhouse.core.errors import ModelError, unknown
from stillhouse.models.generator import GeneratorKind, used_choices

FAMILIES: dict[GeneratorKind, tuple[str, ...]] = {
    "seq2seq": ("marian", "bart", "t5"),
    "causal_lm": ("gpt2", "llama"),
}
HEAD = 64  # width of a head where none are asked for


def new_model(
    task: GeneratorKind,
    tokenizer: PreTrainedTokenizerBase,
    *,
    family: str | None = None,
    width: int,
    layers: int,
    decoder_layers: int | None = None,
    ffn: int | None = None,
    heads: int | None = None,
    positions: int = POSITIONS,
    dropout: float = 0.1,
    seed: int = 0,
) -> PreTrainedModel:
    """An untrained model with the vocabulary of `tokenizer`, in eval mode: an encoder-decoder
    (seq2seq: marian, the default, bart, t5) or a language model (causal_lm: gpt2, llama).

    `layers`: of both sides, unless the decoder has its own. ffn: four times the width (of llama,
    which multiplies two of them, 8/3) unless given; heads: of 64, at least two. Input and output
    embeddings are the same. Weights are drawn as transformers draws them (Marian's so learn faster
    than from Glorot and Bengio's with embeddings of a deviation of width^-0.5, as Vaswani et al.
    2017 drew them). Raises ModelError for a shape there is not.
    """
    if task not in FAMILIES:
        raise ModelError(unknown("task", task, FAMILIES))
    family = family or FAMILIES[task][0]
    if family not in FAMILIES[task]:
        raise ModelError(unknown(f"family of {task} models", family, FAMILIES[task]))
    if decoder_layers is not None and task == "causal_lm":
        raise ModelError(f"{family} has one stack of layers: leave decoder_layers out")
    counts = {
        "width": width, "layers": layers, "decoder_layers": decoder_layers, "ffn": ffn,
        "heads": heads, "positions": positions,
    }  # fmt: skip
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ModelError(f"{name} must be at least 1, got {value}")
    if not 0 <= dropout < 1:
        raise ModelError(f"dropout must be at least 0 and less than 1, got {dropout}")
    shape: dict[str, Any] = {
        "width": width,
        "layers": layers,
        "decoder_layers": layers if decoder_layers is None else decoder_layers,
        "ffn": ffn or (-(-8 * width // 24) * 8 if family == "llama" else 4 * width),
        "heads": _heads(family, width, heads),
        "positions": positions,
        "dropout": dropout,
    }
    ids = _ids(tokenizer, task)
    config = MAKERS[family](shape, used_choices(tokenizer), ids)
    kind = AutoModelForSeq2SeqLM if task == "seq2seq" else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = kind.from_config(config)
    model.generation_config = GenerationConfig(**ids, max_length=positions)
    return model.eval()


def _heads(family: str, width: int, asked: int | None) -> int:
    """Raises ModelError where no head count fits the width."""
    even = 2 if family == "llama" else 1  # which turns pairs of a head's entries
    fits = [n for n in range(1, width + 1) if width % n == 0 and width // n % even == 0]
    if family == "marian" and width % 2:
        raise ModelError(f"marian's positions take an even width, got {width}")
    if asked is not None:
        if asked not in fits:
            near = ", ".join(map(str, fits[:6])) or "none"
            raise ModelError(f"a width of {width} can't have {asked} heads: {near} would fit")
        return asked
    if not fits:
        raise ModelError(f"{family} takes an even width, got {width}")
    target = max(2, width // HEAD)
    return min(fits, key=lambda n: (abs(n - target), n))


def _ids(tokenizer: PreTrainedTokenizerBase, task: GeneratorKind) -> dict[str, Any]:
    """Special ids under their names in configs. Raises ModelError for one that is missing."""
    found: dict[str, Any] = {}
    for name in ("pad", "eos"):
        value = getattr(tokenizer, f"{name}_token_id")
        if not isinstance(value, int):
            what = {"pad": "to pad with", "eos": "to end a text with"}[name]
            raise ModelError(f"the tokenizer has no token {what}: set its {name}_token")
        found[f"{name}_token_id"] = value
    if task == "seq2seq":  # a text begins where padding would be, as T5's and Marian's
        return found | {"decoder_start_token_id": found["pad_token_id"]}
    begin = tokenizer.bos_token_id
    return found | {"bos_token_id": begin if isinstance(begin, int) else found["eos_token_id"]}


def _sides(shape: dict[str, Any], vocabulary: int, ids: dict[str, Any]) -> dict[str, Any]:
    """What Marian's and BART's configs have in common."""
    return {
        "vocab_size": vocabulary,
        "d_model": shape["width"],
        "encoder_layers": shape["layers"],
        "decoder_layers": shape["decoder_layers"],
        "encoder_ffn_dim": shape["ffn"],
        "decoder_ffn_dim": shape["ffn"],
        "encoder_attention_heads": shape["heads"],
        "decoder_attention_heads": shape["heads"],
        "max_position_embeddings": shape["positions"],
        "dropout": shape["dropout"],
        "bos_token_id": None,
        "forced_eos_token_id": None,
        **ids,
    }


def _marian(shape: dict[str, Any], vocabulary: int, ids: dict[str, Any]) -> Any:
    return MarianConfig(
        **_sides(shape, vocabulary, ids), activation_function="relu", scale_embedding=True
    )


def _bart(shape: dict[str, Any], vocabulary: int, ids: dict[str, Any]) -> Any:
    return BartConfig(**_sides(shape, vocabulary, ids))


def _t5(shape: dict[str, Any], vocabulary: int, ids: dict[str, Any]) -> Any:
    return T5Config(
        vocab_size=vocabulary,
        d_model=shape["width"],
        d_kv=shape["width"] // shape["heads"],
        d_ff=shape["ffn"],
        num_layers=shape["layers"],
        num_decoder_layers=shape["decoder_layers"],
        num_heads=shape["heads"],
        dropout_rate=shape["dropout"],
        **ids,
    )


def _gpt2(shape: dict[str, Any], vocabulary: int, ids: dict[str, Any]) -> Any:
    return GPT2Config(
        vocab_size=vocabulary,
        n_positions=shape["positions"],
        n_embd=shape["width"],
        n_layer=shape["layers"],
        n_head=shape["heads"],
        n_inner=shape["ffn"],
        resid_pdrop=shape["dropout"],
        embd_pdrop=shape["dropout"],
        attn_pdrop=shape["dropout"],
        **ids,
    )


def _llama(shape: dict[str, Any], vocabulary: int, ids: dict[str, Any]) -> Any:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape["width"],
        intermediate_size=shape["ffn"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        max_position_embeddings=shape["positions"],
        attention_dropout=shape["dropout"],
        tie_word_embeddings=True,
        **ids,
    )


MAKERS: dict[str, Callable[[dict[str, Any], int, dict[str, Any]], Any]] = {
    "marian": _marian,
    "bart": _bart,
    "t5": _t5,
    "gpt2": _gpt2,
    "llama": _llama,
}
