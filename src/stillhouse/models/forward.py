"""Scores of a classifier for a batch: the model's own forward, or a faster equal for encoders.

The fast path computes what BertForSequenceClassification and RobertaForSequenceClassification
compute, from the same parameters. It is faster because only the first token's state is read by
their heads: the last block therefore needs keys and values of all tokens, but queries, output
and feed-forward of the first token only. Its activations stay in one dtype, so nothing is cast
back and forth, and its dropout draws cheap random numbers. tests/models/test_forward.py compares
it with the model's own forward.

Axes: B examples, T tokens, H hidden, K choices.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.models.dropout import dropout

Random = np.random.Generator | None


def _linear(x: Tensor, layer: Any) -> Tensor:
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def _norm(x: Tensor, norm: Any) -> Tensor:
    return F.layer_norm(
        x, norm.normalized_shape, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps
    )


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def _projections(x: Tensor, query: Tensor, attention: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of `query`, keys and values of `x`; one product where both are the same."""
    layers = (attention.query, attention.key, attention.value)
    if query is x:
        weight = torch.cat([layer.weight for layer in layers]).to(x.dtype)
        bias = torch.cat([layer.bias for layer in layers]).to(x.dtype)
        q, k, v = F.linear(x, weight, bias).split(attention.query.out_features, -1)
        return q, k, v
    weight = torch.cat([layer.weight for layer in layers[1:]]).to(x.dtype)
    bias = torch.cat([layer.bias for layer in layers[1:]]).to(x.dtype)
    k, v = F.linear(x, weight, bias).split(attention.key.out_features, -1)
    return _linear(query, attention.query), k, v


def _block(
    x: Tensor, block: Any, bias: Tensor | None, config: Any, rng: Random, *, first_only: bool
) -> Tensor:
    attention, output = block.attention.self, block.attention.output
    kept = x[:, :1] if first_only else x
    q, k, v = (_heads(t, attention.num_attention_heads) for t in _projections(x, kept, attention))
    scores = torch.matmul(q * attention.scaling, k.transpose(2, 3))
    if bias is not None:
        scores = scores + bias
    weights = dropout(scores.softmax(-1), config.attention_probs_dropout_prob, rng)
    context = torch.matmul(weights, v).transpose(1, 2).flatten(2)
    p = config.hidden_dropout_prob
    attended = _norm(dropout(_linear(context, output.dense), p, rng) + kept, output.LayerNorm)
    inner = F.gelu(_linear(attended, block.intermediate.dense))
    return _norm(
        dropout(_linear(inner, block.output.dense), p, rng) + attended, block.output.LayerNorm
    )


def _embed(embeddings: Any, inputs: Mapping[str, Tensor], positions: Tensor, rng: Random) -> Tensor:
    ids = inputs["input_ids"]
    types = inputs.get("token_type_ids")
    table = embeddings.token_type_embeddings.weight
    type_states = table[0] if types is None else F.embedding(types, table)
    words = embeddings.word_embeddings(ids)
    x = words + F.embedding(positions, embeddings.position_embeddings.weight) + type_states
    norm = embeddings.LayerNorm
    x = F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return dropout(x, embeddings.dropout.p, rng)


def _encode(
    encoder: Any, inputs: Mapping[str, Tensor], positions: Tensor, dtype: torch.dtype, rng: Random
) -> Tensor:
    """The first token's last state, B x H."""
    x = _embed(encoder.embeddings, inputs, positions, rng).to(dtype)
    mask, bias = inputs["attention_mask"], None
    if not bool(mask.all()):
        bias = (1.0 - mask.to(dtype))[:, None, None, :] * torch.finfo(dtype).min
    last = len(encoder.encoder.layer) - 1
    for i, block in enumerate(encoder.encoder.layer):
        x = _block(x, block, bias, encoder.config, rng, first_only=i == last)
    return x[:, 0]


def _head_dropout(config: Any) -> float:
    own = getattr(config, "classifier_dropout", None)
    return config.hidden_dropout_prob if own is None else own


def _bert(model: Any, inputs: Mapping[str, Tensor], dtype: torch.dtype, rng: Random) -> Tensor:
    ids = inputs["input_ids"]
    positions = torch.arange(ids.shape[1], device=ids.device)
    first = _encode(model.bert, inputs, positions, dtype, rng)
    pooled = torch.tanh(_linear(first, model.bert.pooler.dense))
    return _linear(dropout(pooled, _head_dropout(model.config), rng), model.classifier)


def _roberta(model: Any, inputs: Mapping[str, Tensor], dtype: torch.dtype, rng: Random) -> Tensor:
    ids, pad = inputs["input_ids"], model.config.pad_token_id
    real = ids.ne(pad).long()
    first = _encode(model.roberta, inputs, real.cumsum(1) * real + pad, dtype, rng)
    head, p = model.classifier, _head_dropout(model.config)
    hidden = torch.tanh(_linear(dropout(first, p, rng), head.dense))
    return _linear(dropout(hidden, p, rng), head.out_proj)


FAST: dict[str, Callable[..., Tensor]] = {
    "bert": _bert,
    "roberta": _roberta,
    "xlm-roberta": _roberta,
}


def has_fast_path(model: nn.Module) -> bool:
    config: Any = getattr(model, "config", None)
    if config is None or getattr(config, "model_type", None) not in FAST:
        return False
    plain_class = type(model).__name__.endswith("ForSequenceClassification")
    return (
        plain_class
        and config.hidden_act == "gelu"
        and getattr(config, "position_embedding_type", "absolute") in (None, "absolute")
        and not getattr(config, "is_decoder", False)
    )


def scores(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    precision: str,
    rng: Random = None,
    fast: bool = True,
) -> Tensor:
    """Scores in float32, B x K. `precision` is bf16 or float32; with a generator, dropout is on.

    The model's own forward is used where there is no fast path; its dropout follows
    `model.training` and torch's generator.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    if fast and has_fast_path(model):
        return FAST[model.config.model_type](model, inputs, dtype, rng).float()  # pyright: ignore
    device = next(iter(inputs.values())).device
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        output = model(**inputs)
    return output.logits.float()


@contextlib.contextmanager
def training_mode(model: nn.Module, *, on: bool) -> Iterator[None]:
    """Switches dropout on or off inside the block, and back after it."""
    before = model.training
    model.train(on)
    try:
        yield
    finally:
        model.train(before)
