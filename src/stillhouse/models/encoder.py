"""A faster forward of BERT's relatives, from a model's own parameters.

It computes what their transformers classes compute. It is faster because a classifier reads the
first token's state only: its last block then needs keys and values of all tokens, but queries,
output and feed-forward of the first one only. In float32 it needs no keys and values either, and
padding is not computed; bf16, which rounds every product, keeps to the order of the original.
Activations stay in one dtype, so nothing is cast back and forth, and dropout draws cheap random
numbers. What taps ask for is noted on the way: attention scores are there anyway.
tests/models/test_forward.py compares all of it with the models' own forward.

Axes: B examples, T tokens, N = B x T (or those of them that are real), H hidden, A heads,
D width of a head, C columns, K choices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.core.types import Tap, What
from stillhouse.models.dropout import dropout
from stillhouse.models.families import Pairs, Random, Shape, known_family
from stillhouse.models.weights import Joined, Pair, linear


@dataclass
class Notes:
    """What is to be read in a forward, and what was."""

    reads: frozenset[Tap]
    found: dict[Tap, Tensor] = field(default_factory=dict)

    def at(self, layer: int) -> bool:
        return any(tap.layer == layer for tap in self.reads)

    def wants(self, what: What, layer: int) -> bool:
        return bool(self.reads) and Tap(what, layer) in self.reads

    def put(self, what: What, layer: int, value: Tensor) -> None:
        if self.wants(what, layer):
            self.found[Tap(what, layer)] = value


@dataclass(frozen=True)
class Stop:
    """Where a forward ends that is run for what is read only: after block `layer`, or inside it
    once its attention is read."""

    layer: int
    in_attention: bool


@dataclass(frozen=True)
class Tokens:
    """Which tokens of B texts are computed, N in all: T places of each, or (`real_N`) only the
    places of B x T that no padding fills, one text after another."""

    texts: int
    width: int
    real_N: Tensor | None = None

    def kept(self, x: Tensor) -> Tensor:
        """(B x T) x H -> N x H."""
        return x if self.real_N is None else F.embedding(self.real_N, x)

    def spread(self, x: Tensor) -> Tensor:
        """N x H -> B x T x H, zeros where padding is."""
        if self.real_N is not None:
            x = x.new_zeros(self.texts * self.width, x.shape[-1]).index_copy_(0, self.real_N, x)
        return x.view(self.texts, self.width, x.shape[-1])

    def first(self, x: Tensor) -> Tensor:
        """N x H -> the first tokens', B x H."""
        if self.real_N is None:
            return self.spread(x)[:, 0]
        return F.embedding((self.real_N % self.width == 0).nonzero().squeeze(1), x)


def _norm(x: Tensor, pair: Pair, eps: float) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), pair.weight, pair.bias, eps)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, heads: int, shape: Shape, rng: Random,
    notes: Notes, layer: int,
) -> Tensor:  # fmt: skip
    """Attention of queries over keys; q, k, v: (B x A) x tokens x D. Scores are laid out
    keys x queries: a softmax over the last axis is slow for short rows."""
    scores = torch.bmm(k, q.transpose(1, 2)).mul_(q.shape[-1] ** -0.5)
    by_head = (-1, heads, *scores.shape[1:])
    if bias is not None:  # in the noted scores too: padded keys are nobody's business
        scores = scores.view(by_head).add_(bias).view(-1, *by_head[2:])
    notes.put("scores", layer, scores.view(by_head).transpose(2, 3))
    weights = scores.softmax(1, dtype=torch.float32).to(q.dtype)
    notes.put("probabilities", layer, weights.view(by_head).transpose(2, 3))
    return torch.bmm(dropout(weights, shape.attention, rng).transpose(1, 2), v)


def _attend_from_first(
    first: Tensor, x_BTH: Tensor, bias: Tensor | None, pairs: Pairs, shape: Shape, rng: Random
) -> Tensor:
    """What the first tokens' queries attend to, B x (A D), without anyone's keys and values: with
    k = K x + c a score q . k is (q K) . x, but for what all keys share, which a softmax doesn't
    see; and the mean of values is the value of a mean. Two products by token become two by text."""
    q, (weight, value_bias, _) = linear(first, next(pairs)), next(pairs)
    rows, hidden = first.shape
    keys_ADH, values_ADH = weight.view(2, -1, shape.head, hidden)
    heads = len(keys_ADH)
    q_ABD = q.view(rows, heads, shape.head).transpose(0, 1) * shape.head**-0.5
    scores_BTA = torch.bmm(x_BTH, torch.bmm(q_ABD, keys_ADH).permute(1, 2, 0))
    if bias is not None:
        scores_BTA = scores_BTA + bias.view(rows, -1, 1)
    weights_BTA = dropout(scores_BTA.softmax(1), shape.attention, rng)
    means_BAH = torch.bmm(weights_BTA.transpose(1, 2), x_BTH)
    values_ABD = torch.bmm(means_BAH.transpose(0, 1), values_ADH.transpose(1, 2))
    shares_AB1 = weights_BTA.sum(1).t()[..., None]  # not 1 each: dropout
    context_ABD = values_ABD + shares_AB1 * value_bias.view(2, heads, 1, -1)[1]
    return context_ABD.transpose(0, 1).reshape(rows, -1)


def _split(x_BTC: Tensor, parts: int, head: int) -> tuple[Tensor, ...]:
    """B x T x (parts A D) -> each part as (B x A) x T x D."""
    x = x_BTC.view(*x_BTC.shape[:2], parts, -1, head).permute(2, 0, 3, 1, 4)
    return x.reshape(parts, -1, x.shape[3], head).unbind(0)


def _block(
    x: Tensor, tokens: Tokens, bias: Tensor | None, pairs: Pairs, shape: Shape, rng: Random,
    notes: Notes, layer: int, *, last: bool, first_only: bool, ends: bool, regroups: bool,
) -> Tensor:  # fmt: skip
    """N x H -> N x H; with `first_only` the first tokens' states, B x H. With `ends` no more is
    computed than attention. `regroups`: sums may be taken in another order."""
    kept = tokens.first(x) if first_only else x
    if first_only and regroups:
        context = _attend_from_first(kept, tokens.spread(x), bias, pairs, shape, rng)
        return _rest(context, kept, pairs, shape, rng)
    if last:
        asking = Tokens(tokens.texts, 1) if first_only else tokens
        (q,) = _split(asking.spread(linear(kept, next(pairs))), 1, shape.head)
        k, v = _split(tokens.spread(linear(x, next(pairs))), 2, shape.head)
    else:
        q, k, v = _split(tokens.spread(linear(x, next(pairs))), 3, shape.head)
    heads = len(q) // tokens.texts
    if notes.reads:
        named: tuple[tuple[What, Tensor], ...] = (("queries", q), ("keys", k), ("values", v))
        for what, part in named:
            notes.put(what, layer, part.view(tokens.texts, heads, *part.shape[1:]))
    context = _attend(q, k, v, bias, heads, shape, rng, notes, layer)
    if ends:
        return x
    context = context.view(tokens.texts, heads, -1, context.shape[-1]).transpose(1, 2)
    context = context.reshape(-1, heads * context.shape[-1])
    return _rest(context if first_only else tokens.kept(context), kept, pairs, shape, rng)


def _rest(context: Tensor, kept: Tensor, pairs: Pairs, shape: Shape, rng: Random) -> Tensor:
    """What a block makes of attention's context and its own input, token by token."""
    out = dropout(linear(context, next(pairs)), shape.attended, rng)
    attended = _norm(out + kept, next(pairs), shape.eps)
    inner = F.gelu(linear(attended, next(pairs)))
    out = dropout(linear(inner, next(pairs)), shape.dropout, rng)
    return _norm(out + attended, next(pairs), shape.eps)


def encode(
    base: Any, inputs: Mapping[str, Tensor], pairs: Pairs, dtype: torch.dtype, rng: Random,
    notes: Notes, *, first_only: bool = False, stop: Stop | None = None,
) -> Tensor:  # fmt: skip
    """Last states: N x H, or with `first_only` the first tokens', B x H. With `stop`, whatever
    there is at that place, and no more is computed."""
    names = known_family(base.config)
    x = names.embed(base.embeddings, inputs, rng).to(dtype)
    mask, bias = inputs["attention_mask"], None
    if not bool(mask.all()):
        bias = ((1.0 - mask.to(dtype)) * torch.finfo(dtype).min)[:, None, :, None]
    texts, width = mask.shape
    tokens, regroups = Tokens(texts, width), dtype == torch.float32
    starts = bool(mask[:, 0].all())  # a text of no tokens has no first one
    if bias is not None and first_only and not notes.reads and regroups and starts:
        tokens = replace(tokens, real_N=mask.flatten().nonzero().squeeze(1))
        x = tokens.kept(x)
    shape, last = names.shape(base.config), len(names.blocks(base))
    if notes.wants("hidden", 0):
        notes.put("hidden", 0, tokens.spread(x))
    for layer in range(1, (last if stop is None else stop.layer) + 1):
        is_last = layer == last
        ends = stop is not None and stop.in_attention and layer == stop.layer
        x = _block(
            x, tokens, bias, pairs, shape, rng, notes, layer,
            last=is_last, first_only=first_only and is_last and not notes.at(layer), ends=ends,
            regroups=regroups,
        )  # fmt: skip
        if notes.wants("hidden", layer):
            notes.put("hidden", layer, tokens.spread(x))
    return tokens.first(x) if first_only and len(x) != tokens.texts else x


def encoder_layers(base: Any, stop: Stop | None = None) -> list[Joined]:
    """The layers of a model's blocks (as far as `stop`), in the order `encode` takes their
    weights."""
    names = known_family(base.config)
    found: list[Joined] = []
    blocks = list(names.blocks(base))
    for number, block in enumerate(blocks[: stop.layer if stop else None], start=1):
        q, k, v, *others = names.parts(block)
        found += [[q], [k, v]] if number == len(blocks) else [[q, k, v]]
        if stop is None or number < stop.layer or not stop.in_attention:
            found += [[layer] for layer in others]
    return found
