"""Scores of a classifier for a batch: the model's own forward, or a faster equal for encoders.

The fast path computes what BertForSequenceClassification and RobertaForSequenceClassification
compute, from the same parameters. It is faster because only the first token's state is read by
their heads: the last block therefore needs keys and values of all tokens, but queries, output
and feed-forward of the first token only. Its activations stay in one dtype, so nothing is cast
back and forth, and its dropout draws cheap random numbers. tests/models/test_forward.py compares
it with the model's own forward.

Axes: B examples, T tokens, N = B x T, H hidden, K choices.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.models.dropout import dropout
from stillhouse.models.weights import Joined, Pair, joined, linear

Random = np.random.Generator | None
Pairs = Iterator[Pair]


def _norm(x: Tensor, pair: Pair, eps: float) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), pair.weight, pair.bias, eps)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, p: float, rng: Random) -> Tensor:
    """Attention of queries over keys; q, k, v: A x tokens x width of a head, A = B x heads.
    Scores are laid out keys x queries: a softmax over the last axis is slow for short rows."""
    scores = torch.bmm(k, q.transpose(1, 2)).mul_(q.shape[-1] ** -0.5)
    if bias is not None:
        scores = scores.view(len(bias), -1, *scores.shape[1:]).add_(bias).view(scores.shape)
    weights = scores.softmax(1, dtype=torch.float32).to(q.dtype)
    return torch.bmm(dropout(weights, p, rng).transpose(1, 2), v)


def _split(x: Tensor, rows: int, parts: int, heads: int) -> tuple[Tensor, ...]:
    """N x parts H -> each part as A x tokens x width of a head."""
    x = x.view(rows, len(x) // rows, parts, heads, -1).permute(2, 0, 3, 1, 4)
    return x.reshape(parts, rows * heads, x.shape[3], -1).unbind(0)


def _block(
    x: Tensor, rows: int, bias: Tensor | None, pairs: Pairs, config: Any, rng: Random, *, last: bool
) -> Tensor:
    """N x H -> N x H, N = B x T; the last block gives the first tokens' states only, B x H."""
    heads, p, eps = config.num_attention_heads, config.hidden_dropout_prob, config.layer_norm_eps
    if last:
        kept = x.view(rows, -1, x.shape[-1])[:, 0]
        (q,) = _split(linear(kept, next(pairs)), rows, 1, heads)
        k, v = _split(linear(x, next(pairs)), rows, 2, heads)
    else:
        kept = x
        q, k, v = _split(linear(x, next(pairs)), rows, 3, heads)
    context = _attend(q, k, v, bias, config.attention_probs_dropout_prob, rng)
    context = context.view(rows, heads, -1, context.shape[-1]).transpose(1, 2).reshape(kept.shape)
    attended = _norm(dropout(linear(context, next(pairs)), p, rng) + kept, next(pairs), eps)
    inner = F.gelu(linear(attended, next(pairs)))
    return _norm(dropout(linear(inner, next(pairs)), p, rng) + attended, next(pairs), eps)


def _embed(embeddings: Any, inputs: Mapping[str, Tensor], positions: Tensor, rng: Random) -> Tensor:
    ids = inputs["input_ids"]
    types = inputs.get("token_type_ids")
    table = embeddings.token_type_embeddings.weight
    type_states = table[0] if types is None else F.embedding(types, table)
    words = embeddings.word_embeddings(ids)
    x = words + F.embedding(positions, embeddings.position_embeddings.weight) + type_states
    norm = embeddings.LayerNorm
    x = F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return dropout(x.flatten(0, 1), embeddings.dropout.p, rng)


def _encode(
    encoder: Any, inputs: Mapping[str, Tensor], positions: Tensor, pairs: Pairs,
    dtype: torch.dtype, rng: Random,
) -> Tensor:  # fmt: skip
    """The first token's last state, B x H."""
    x = _embed(encoder.embeddings, inputs, positions, rng).to(dtype)
    mask, bias = inputs["attention_mask"], None
    if not bool(mask.all()):
        bias = ((1.0 - mask.to(dtype)) * torch.finfo(dtype).min)[:, None, :, None]
    last = len(encoder.encoder.layer) - 1
    for i in range(last + 1):
        x = _block(x, len(mask), bias, pairs, encoder.config, rng, last=i == last)
    return x


def _head_dropout(config: Any) -> float:
    own = getattr(config, "classifier_dropout", None)
    return config.hidden_dropout_prob if own is None else own


def _bert(
    model: Any, inputs: Mapping[str, Tensor], pairs: Pairs, dtype: torch.dtype, rng: Random
) -> Tensor:
    ids = inputs["input_ids"]
    positions = torch.arange(ids.shape[1], device=ids.device)
    first = _encode(model.bert, inputs, positions, pairs, dtype, rng)
    pooled = torch.tanh(linear(first, next(pairs)))
    return linear(dropout(pooled, _head_dropout(model.config), rng), next(pairs))


def _roberta(
    model: Any, inputs: Mapping[str, Tensor], pairs: Pairs, dtype: torch.dtype, rng: Random
) -> Tensor:
    ids, pad = inputs["input_ids"], model.config.pad_token_id
    real = ids.ne(pad).long()
    first = _encode(model.roberta, inputs, real.cumsum(1) * real + pad, pairs, dtype, rng)
    p = _head_dropout(model.config)
    hidden = torch.tanh(linear(dropout(first, p, rng), next(pairs)))
    return linear(dropout(hidden, p, rng), next(pairs))


FAST: dict[str, Callable[..., Tensor]] = {
    "bert": _bert,
    "roberta": _roberta,
    "xlm-roberta": _roberta,
}
DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}


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


def fast_layers(model: Any) -> list[Joined]:
    """The layers of a model's blocks and head, in the order its fast path takes them."""
    base = model.base_model
    found: list[Joined] = []
    last = len(base.encoder.layer) - 1
    for i, block in enumerate(base.encoder.layer):
        own, output = block.attention.self, block.attention.output
        if i == last:
            found += [[own.query], [own.key, own.value]]
        else:
            found += [[own.query, own.key, own.value]]
        found += [[output.dense], [output.LayerNorm], [block.intermediate.dense]]
        found += [[block.output.dense], [block.output.LayerNorm]]
    head = model.classifier
    pooled = [[base.pooler.dense], [head]] if model.config.model_type == "bert" else None
    return found + (pooled or [[head.dense], [head.out_proj]])


def fast_weights(model: nn.Module, precision: str) -> list[Pair]:
    """What `scores` takes as `weights`: to be made once where a model answers many batches."""
    return joined(fast_layers(model), DTYPES[precision])


def scores(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    precision: str,
    rng: Random = None,
    fast: bool = True,
    weights: Sequence[Pair] | None = None,
) -> Tensor:
    """Scores in float32, B x K. `precision` is bf16 or float32; with a generator, dropout is on.

    The model's own forward is used where there is no fast path; its dropout follows
    `model.training` and torch's generator. `weights` are those of the fast path, if made before.
    """
    if fast and has_fast_path(model):
        pairs = fast_weights(model, precision) if weights is None else weights
        answer = FAST[model.config.model_type]  # pyright: ignore
        return answer(model, inputs, iter(pairs), DTYPES[precision], rng).float()
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
