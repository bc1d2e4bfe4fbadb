"""What BERT's relatives call their parts, and where they differ: the tables of the fast path.

Axes: B examples, H hidden, K choices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.models.dropout import dropout
from stillhouse.models.slim import family
from stillhouse.models.weights import Joined, Pair, last_linear, linear

Random = np.random.Generator | None
Pairs = Iterator[Pair]


@dataclass(frozen=True)
class Shape:
    """What a block needs to know. `head`: the width of a head; `attended`: the dropout of what
    attention gives."""

    head: int
    eps: float
    dropout: float
    attended: float
    attention: float


@dataclass(frozen=True)
class Family:
    """How a family names its parts."""

    shape: Callable[[Any], Shape]
    blocks: Callable[[Any], nn.ModuleList]
    parts: Callable[[Any], tuple[Any, ...]]  # q, k, v, output, norm, two of feed-forward, norm
    embed: Callable[[Any, Mapping[str, Tensor], Random], Tensor]
    head_layers: Callable[[Any], list[Joined]]
    head: Callable[[Any, Tensor, Pairs, Random], Tensor]
    activation: str = "hidden_act"


def _bert_shape(config: Any) -> Shape:
    return Shape(
        config.hidden_size // config.num_attention_heads,
        config.layer_norm_eps,
        config.hidden_dropout_prob,
        config.hidden_dropout_prob,
        config.attention_probs_dropout_prob,
    )


def _bert_parts(block: Any) -> tuple[Any, ...]:
    own, output = block.attention.self, block.attention.output
    attention = (own.query, own.key, own.value, output.dense, output.LayerNorm)
    return (*attention, block.intermediate.dense, block.output.dense, block.output.LayerNorm)


def _embed(embeddings: Any, inputs: Mapping[str, Tensor], positions: Tensor, rng: Random) -> Tensor:
    x = embeddings.word_embeddings(inputs["input_ids"])
    places = embeddings.position_embeddings
    x = x + F.embedding(positions, places.weight, places.padding_idx)
    types = getattr(embeddings, "token_type_embeddings", None)
    if types is not None:
        ids = inputs.get("token_type_ids")
        x = x + (types.weight[0] if ids is None else F.embedding(ids, types.weight))
    norm = embeddings.LayerNorm
    x = F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return dropout(x.flatten(0, 1), embeddings.dropout.p, rng)


def _embed_bert(embeddings: Any, inputs: Mapping[str, Tensor], rng: Random) -> Tensor:
    ids = inputs["input_ids"]
    return _embed(embeddings, inputs, torch.arange(ids.shape[1], device=ids.device), rng)


def _embed_roberta(embeddings: Any, inputs: Mapping[str, Tensor], rng: Random) -> Tensor:
    pad = embeddings.padding_idx
    real = inputs["input_ids"].ne(pad).long()
    return _embed(embeddings, inputs, real.cumsum(1) * real + pad, rng)


def _head_dropout(config: Any) -> float:
    own = getattr(config, "classifier_dropout", None)
    return config.hidden_dropout_prob if own is None else own


def _bert_head(model: Any, first: Tensor, pairs: Pairs, rng: Random) -> Tensor:
    pooled = torch.tanh(linear(first, next(pairs)))
    return last_linear(dropout(pooled, _head_dropout(model.config), rng), next(pairs))


def _roberta_head(model: Any, first: Tensor, pairs: Pairs, rng: Random) -> Tensor:
    p = _head_dropout(model.config)
    hidden = torch.tanh(linear(dropout(first, p, rng), next(pairs)))
    return last_linear(dropout(hidden, p, rng), next(pairs))


def _distilbert_head(model: Any, first: Tensor, pairs: Pairs, rng: Random) -> Tensor:
    hidden = torch.relu(linear(first, next(pairs)))
    return last_linear(dropout(hidden, model.config.seq_classif_dropout, rng), next(pairs))


def _distilbert_parts(block: Any) -> tuple[Any, ...]:
    own, ffn = block.attention, block.ffn
    attention = (own.q_lin, own.k_lin, own.v_lin, own.out_lin, block.sa_layer_norm)
    return (*attention, ffn.lin1, ffn.lin2, block.output_layer_norm)


BERT = Family(
    shape=_bert_shape,
    blocks=lambda base: base.encoder.layer,
    parts=_bert_parts,
    embed=_embed_bert,
    head_layers=lambda model: [[model.bert.pooler.dense], [model.classifier]],
    head=_bert_head,
)
ROBERTA = Family(
    shape=_bert_shape,
    blocks=BERT.blocks,
    parts=_bert_parts,
    embed=_embed_roberta,
    head_layers=lambda model: [[model.classifier.dense], [model.classifier.out_proj]],
    head=_roberta_head,
)
DISTILBERT = Family(
    shape=lambda c: Shape(c.dim // c.n_heads, 1e-12, c.dropout, 0.0, c.attention_dropout),
    blocks=lambda base: base.transformer.layer,
    parts=_distilbert_parts,
    embed=_embed_bert,
    head_layers=lambda model: [[model.pre_classifier], [model.classifier]],
    head=_distilbert_head,
    activation="activation",
)
FAMILIES = {"bert": BERT, "roberta": ROBERTA, "xlm-roberta": ROBERTA, "distilbert": DISTILBERT}


def known_family(config: Any) -> Family:
    found = family_of(config)
    assert found is not None, "asked of models with a fast path only"
    return found


def family_of(config: Any) -> Family | None:
    """How a model's family names its parts; None for one without a fast path."""
    return FAMILIES.get(family(getattr(config, "model_type", "")))
