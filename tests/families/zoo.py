"""Tiny random classifiers of the families that transformers has, each with a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

import tiny
from stillhouse.models.load import head_settings

LAYERS, WIDTH, POSITIONS = 4, 32, 66
BERT = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
ROBERTA = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
USUAL: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": POSITIONS,
}
GROUPED = {**USUAL, "num_key_value_heads": 1, "head_dim": 16}
ONE_TYPE = {"type_vocab_size": 1}
XLM = {"emb_dim": WIDTH, "n_layers": LAYERS, "n_heads": 2, "max_position_embeddings": POSITIONS}
STACKS: dict[str, Any] = {
    "d_model": WIDTH,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_ffn_dim": 2 * WIDTH,
    "decoder_ffn_dim": 2 * WIDTH,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "max_position_embeddings": POSITIONS,
    "decoder_start_token_id": 2,
}
T5: dict[str, Any] = {
    "d_model": WIDTH,
    "d_kv": 16,
    "d_ff": 2 * WIDTH,
    "num_layers": LAYERS,
    "num_decoder_layers": LAYERS,
    "num_heads": 2,
    "decoder_start_token_id": 1,
}
# What each family's config says beside its vocabulary and its special tokens.
OF_BERT: dict[str, dict[str, Any]] = {
    "albert": {**USUAL, "embedding_size": 16},
    "bert": USUAL,
    "big_bird": {**USUAL, "block_size": 4, "num_random_blocks": 1, "max_position_embeddings": 64},
    "convbert": {**USUAL, "embedding_size": 16},
    "deberta": {**USUAL, "type_vocab_size": 0, "relative_attention": True,
                "pos_att_type": ["c2p", "p2c"], "position_biased_input": False},
    "deberta-v2": {**USUAL, "type_vocab_size": 0, "relative_attention": True,
                   "pos_att_type": ["c2p", "p2c"], "position_biased_input": False,
                   "pooler_hidden_size": WIDTH},
    "distilbert": {"dim": WIDTH, "n_layers": LAYERS, "n_heads": 2, "hidden_dim": 2 * WIDTH,
                   "max_position_embeddings": POSITIONS},
    "electra": {**USUAL, "embedding_size": 16},
    "ernie": USUAL,
    "fnet": {k: v for k, v in USUAL.items() if k != "num_attention_heads"},
    "funnel": {"d_model": WIDTH, "d_inner": 2 * WIDTH, "n_head": 2, "d_head": 16,
               "block_sizes": [2, 2], "num_decoder_layers": 1},
    "layoutlm": {**USUAL, "max_2d_position_embeddings": 128},
    "megatron-bert": USUAL,
    "mobilebert": {**USUAL, "embedding_size": 16, "intra_bottleneck_size": 16},
    "modernbert": {**USUAL, "cls_token_id": 2, "sep_token_id": 3, "local_attention": 4,
                   "global_attn_every_n_layers": 2},
    "mra": {**USUAL, "block_per_row": 1},
    "nystromformer": {**USUAL, "num_landmarks": 64, "segment_means_seq_len": 64},
    "reformer": {"attention_head_size": 16, "num_attention_heads": 2, "hidden_size": WIDTH,
                 "feed_forward_size": 2 * WIDTH, "attn_layers": ["local", "lsh"] * 2,
                 "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8],
                 "max_position_embeddings": 64, "num_buckets": 4, "is_decoder": False,
                 "lsh_attn_chunk_length": 8, "local_attn_chunk_length": 8},
    "rembert": {**USUAL, "input_embedding_size": 16, "output_embedding_size": 24},
    "roformer": {**USUAL, "embedding_size": WIDTH},
    "squeezebert": {**USUAL, "embedding_size": WIDTH, "q_groups": 2, "k_groups": 2, "v_groups": 2,
                    "intermediate_groups": 2, "output_groups": 2},
}  # fmt: skip
OF_ROBERTA: dict[str, dict[str, Any]] = {
    "bart": STACKS,
    "bloom": {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": 2},
    "camembert": {**USUAL, **ONE_TYPE},
    "data2vec-text": {**USUAL, **ONE_TYPE},
    "esm": {**USUAL, "position_embedding_type": "rotary", "mask_token_id": 4},
    "falcon": {**USUAL, "num_kv_heads": 1},
    "flaubert": XLM,
    "gemma": GROUPED,
    "gemma2": {**GROUPED, "sliding_window": 4},
    "gpt2": {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 2, "n_positions": POSITIONS},
    "gpt_neo": {"hidden_size": WIDTH, "num_layers": LAYERS, "num_heads": 2, "window_size": 4,
                "attention_types": [[["global", "local"], LAYERS // 2]],
                "max_position_embeddings": POSITIONS},
    "gpt_neox": USUAL,
    "ibert": {**USUAL, **ONE_TYPE},
    "llama": GROUPED,
    "longformer": {**USUAL, **ONE_TYPE, "attention_window": [4] * LAYERS},
    "mbart": STACKS,
    "mistral": {**GROUPED, "sliding_window": 8},
    "mpnet": USUAL,
    "opt": {"hidden_size": WIDTH, "ffn_dim": 2 * WIDTH, "num_hidden_layers": LAYERS,
            "num_attention_heads": 2, "max_position_embeddings": POSITIONS,
            "word_embed_proj_dim": WIDTH},
    "phi": USUAL,
    "qwen2": {k: v for k, v in GROUPED.items() if k != "head_dim"},
    "qwen3": GROUPED,
    "roberta": {**USUAL, **ONE_TYPE},
    "roberta-prelayernorm": {**USUAL, **ONE_TYPE},
    "t5": T5,
    "umt5": T5,
    "xlm": XLM,
    "xlm-roberta": {**USUAL, **ONE_TYPE},
    "xlm-roberta-xl": {**USUAL, **ONE_TYPE},
    "xlnet": {"d_model": WIDTH, "n_layer": LAYERS, "n_head": 2, "d_inner": 2 * WIDTH},
}  # fmt: skip
FAMILIES = sorted([*OF_BERT, *OF_ROBERTA])


def kind(family: str) -> str:
    """Whose special tokens a family's tokenizer has."""
    return "bert" if family in OF_BERT else "roberta"


def model(
    family: str, *, labels: Sequence[str] = tiny.SENTIMENT, seed: int = 0, **settings: Any
) -> PreTrainedModel:
    """A classifier of `family` with random weights; `settings` win over what its config says."""
    special, shape = (BERT, OF_BERT) if family in OF_BERT else (ROBERTA, OF_ROBERTA)
    size = {"vocab_size": len(tiny.WORDS) + 12}  # filled up, as many are
    head = head_settings(list(labels))
    config = AutoConfig.for_model(
        family, **{**size, **special, **shape[family], **head, **settings}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = AutoModelForSequenceClassification.from_config(config)
        for parameter in found.parameters():
            if parameter.ndim > 1:  # wide enough that rows get different answers
                nn.init.normal_(parameter, std=0.1)
    return found.eval()


def save(folder: Path, family: str, **settings: Any) -> Path:
    """A model folder with its tokenizer."""
    model(family, **settings).save_pretrained(folder)
    words = tiny.tokenizer(kind(family))
    words.model_max_length = 64
    words.save_pretrained(folder)
    return folder
