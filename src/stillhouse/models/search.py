"""A search for likely texts: the beams of many texts side by side, token by token.

A text that is done leaves its batch, and takes its keys and values with it.

Axes: S texts under way, B beams, R rows (S x B, a text's beams side by side), C candidates of a
text, V vocabulary that is scored, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from stillhouse.core.errors import RunError
from stillhouse.core.terms import Config, Positive, Precision
from stillhouse.models.reader import Ids, Reader, Vocabulary

CLOSED = 1 / 8  # of a batch's texts: when so many are done, they are taken out


class Decoding(Config):
    """How texts are looked for.

    max_tokens: written at most, the end token counted; relative_max (a, b): at most
    a x source tokens + b. Positions that the model lacks are never used.
    length_penalty: a text's score is logp / tokens ** length_penalty, the end token counted.
    early_stopping: when a text is done, by the names of transformers' `generate`. never (exact):
    once no text under way, were it as long as allowed, could be among the `best`; false: once none
    could be among the `beams` finished ones if it ended now; true: once `beams` are finished.
    With one beam a text is done at its first end token.
    sample: a text is drawn, from the `top_k` likeliest tokens, of these the likeliest that have
    `top_p` together, at `temperature`; its logp is the model's, all the same.
    max_batch_tokens: of a batch: beams x texts x tokens of the longest source.
    """

    beams: Positive = 5
    best: Positive = 1
    max_tokens: Positive | None = 256
    relative_max: tuple[float, float] | None = None
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = "never"
    sample: bool = False
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_k: Positive | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_batch_tokens: Positive = 16_384
    precision: Precision = "auto"

    @model_validator(mode="after")
    def _possible(self) -> Decoding:
        if self.best > self.beams:
            raise ValueError(f"best is at most beams ({self.beams}), got {self.best}")
        if self.sample and self.beams > 1:
            raise ValueError(f"sample needs beams 1, got {self.beams}")
        return self

    def limits(self, lengths_N: np.ndarray) -> np.ndarray:
        """How many tokens may be written for sources of these lengths."""
        most_N = np.full(len(lengths_N), self.max_tokens or np.iinfo(np.int64).max)
        if self.relative_max is not None:
            a, b = self.relative_max
            most_N = np.minimum(most_N, np.maximum(1, np.floor(a * lengths_N + b)))
        return most_N.astype(np.int64)


@dataclass(frozen=True)
class Hypothesis:
    """What was written, without start and end token; its log-probability in nats, the end token's
    included, whatever rules of the model it was found by; and that end token, None where it was
    cut off at the limit."""

    ids: Ids
    logp: float
    end: int | None

    @property
    def finished(self) -> bool:
        return self.end is not None


@dataclass
class _Text:
    """What has been found of a text: its best hypotheses, scores falling."""

    limit: int
    keeps: int
    done: bool = False
    found: list[tuple[float, Hypothesis]] = field(default_factory=list)

    def add(self, score: float, hypothesis: Hypothesis) -> None:
        self.found.append((score, hypothesis))
        self.found.sort(key=lambda each: -each[0])
        del self.found[self.keeps :]

    @property
    def worst(self) -> float:
        return self.found[-1][0] if len(self.found) == self.keeps else -np.inf


@dataclass(frozen=True)
class _Candidates:
    """Of each text: totals that are searched by, falling, the beams that go on, and by which token;
    `own`: the totals without the model's rules, log-probabilities."""

    logp_SC: Float[np.ndarray, "S C"]
    own_SC: Float[np.ndarray, "S C"]
    beams_SC: Int[np.ndarray, "S C"]
    tokens_SC: Int[np.ndarray, "S C"]


def search(
    reader: Reader,
    limits: Int[np.ndarray, " N"],
    config: Decoding,
    words: Vocabulary,
    seeds: Int[np.ndarray, " N"] | None = None,
) -> list[list[Hypothesis]]:
    """Of each of the reader's texts the best hypotheses, best first. With `seeds` they are drawn.

    The rules are those of transformers' beam search: of the likeliest candidates those that end
    and are among the first `beams` are kept, the best `beams` of the others go on; at its limit a
    text's first `beams` are kept as they are, unfinished.
    """
    exact = config.early_stopping == "never" and config.beams > 1
    texts = [_Text(int(limit), config.best if exact else config.beams) for limit in limits]
    draws = None if seeds is None else [np.random.default_rng(seed) for seed in seeds]
    under_way, logp_SB = np.arange(len(texts)), np.zeros((len(texts), 1))
    own_SB, one = logp_SB, config.beams == 1
    prefix_SBT = np.zeros((len(texts), 1, 0), np.int64)
    scores_RV = reader.start()
    while True:
        length = prefix_SBT.shape[2] + 1
        ruled_RV = reader.ruled(scores_RV, prefix_SBT, under_way, raw=one) if words.rules else None
        _restrict(scores_RV, words, first=length == 1)
        if ruled_RV is not None:
            _restrict(ruled_RV, words, first=length == 1)
        before, by = (logp_SB, own_SB), (scores_RV if ruled_RV is None else ruled_RV, scores_RV)
        if draws is None:
            found = _likeliest(by, before, config.beams, len(words.ends))
        else:
            found = _drawn(by, before, config, [draws[i].random() for i in under_way])
        here = [texts[i] for i in under_way]
        ended_SC = np.isin(found.tokens_SC, words.ends)
        ended_SC |= np.array([text.limit <= length for text in here])[:, None]
        _keep(here, found, ended_SC, prefix_SBT, words, config)
        chosen_SB = np.argsort(ended_SC, axis=1, kind="stable")[:, : config.beams]
        logp_SB = np.take_along_axis(np.where(ended_SC, -np.inf, found.logp_SC), chosen_SB, 1)
        own_SB = np.take_along_axis(found.own_SC, chosen_SB, 1)
        done_S = _done(here, logp_SB[:, 0], length, config)
        if done_S.all():
            return [[hypothesis for _, hypothesis in text.found[: config.best]] for text in texts]
        going = np.flatnonzero(~done_S) if done_S.mean() >= CLOSED else np.arange(len(here))
        beams_before, chosen_SB = prefix_SBT.shape[1], chosen_SB[going]
        parents_SB = np.take_along_axis(found.beams_SC[going], chosen_SB, 1)
        tokens_SB = np.take_along_axis(found.tokens_SC[going], chosen_SB, 1)
        same = len(going) == len(here) and parents_SB.shape[1] == beams_before
        rows_SB = going[:, None] * beams_before + parents_SB
        reader.take(rows_SB.ravel(), same_texts=same)
        prefix_SBT = prefix_SBT[going[:, None], parents_SB]
        prefix_SBT = np.concatenate((prefix_SBT, tokens_SB[..., None]), axis=2)
        under_way, logp_SB, own_SB = under_way[going], logp_SB[going], own_SB[going]
        scores_RV = reader.read(tokens_SB.ravel())


def _restrict(scores_RV: Tensor, words: Vocabulary, *, first: bool) -> None:
    """Makes what must not be written impossible, in place."""
    if first and words.first is not None:
        scores_RV.fill_(-torch.inf)
        scores_RV[:, words.first] = 0.0
    elif words.never:
        scores_RV[:, words.never] = -torch.inf


Both = tuple[Tensor, Tensor]  # scores by the model's rules, and without
Totals = tuple[np.ndarray, np.ndarray]


def _likeliest(by: Both, before: Totals, beams: int, ends: int) -> _Candidates:
    """So many that `beams` go on even where all the others end; with one beam, one."""
    (scores_RV, plain_RV), (logp_SB, own_SB) = by, before
    count = 1 if beams == 1 else (1 + ends) * beams
    texts, rows = logp_SB.shape
    each = scores_RV.topk(min(count, scores_RV.shape[1]), dim=-1)
    plain = each.values if plain_RV is scores_RV else plain_RV.gather(1, each.indices)
    logp_SX, own_SX = (
        (values.view(texts, rows, -1).double().cpu().numpy() + total[..., None]).reshape(texts, -1)
        for values, total in ((each.values, logp_SB), (plain, own_SB))
    )
    if np.isnan(logp_SX).any():
        raise RunError("the model's scores are not finite: check its weights, or use float32")
    order_SC = np.argsort(-logp_SX, axis=1, kind="stable")[:, :count]
    tokens_SX = each.indices.view(texts, -1).cpu().numpy()
    return _Candidates(
        np.take_along_axis(logp_SX, order_SC, 1),
        np.take_along_axis(own_SX, order_SC, 1),
        order_SC // each.values.shape[1],
        np.take_along_axis(tokens_SX, order_SC, 1),
    )


def _drawn(by: Both, before: Totals, config: Decoding, uniform: list[float]) -> _Candidates:
    """One token a text, by where its uniform number falls among the probabilities."""
    (scores_SV, plain_SV), (logp_S1, own_S1) = by, before
    if torch.isnan(scores_SV).any():
        raise RunError("the model's scores are not finite: check its weights, or use float32")
    tempered_SV = scores_SV.double() / config.temperature
    if config.top_k is not None and config.top_k < scores_SV.shape[1]:
        least_S1 = tempered_SV.topk(config.top_k, dim=-1).values[:, -1:]
        tempered_SV = tempered_SV.masked_fill(tempered_SV < least_S1, -torch.inf)
    p_SV = tempered_SV.softmax(-1)
    if config.top_p < 1:
        falling = p_SV.sort(dim=-1, descending=True, stable=True)
        outside = falling.values.cumsum(-1) - falling.values >= config.top_p
        p_SV = p_SV.masked_fill(outside.scatter(1, falling.indices, outside), 0.0)
    reached_SV = p_SV.cumsum(-1)
    at_S1 = torch.tensor(uniform, dtype=torch.float64, device=p_SV.device)[:, None]
    tokens_S1 = torch.searchsorted(reached_SV, at_S1 * reached_SV[:, -1:], right=True)
    logp_S1, own_S1 = (
        total + scores.gather(1, tokens_S1).double().cpu().numpy()
        for total, scores in ((logp_S1, scores_SV), (own_S1, plain_SV))
    )
    zeros_S1 = np.zeros(logp_S1.shape, np.int64)
    return _Candidates(logp_S1, own_S1, zeros_S1, tokens_S1.cpu().numpy())


def _keep(
    texts: list[_Text],
    found: _Candidates,
    ended_SC: np.ndarray,
    prefix_SBT: np.ndarray,
    words: Vocabulary,
    config: Decoding,
) -> None:
    """Adds the hypotheses that ended here to those of their texts."""
    length = prefix_SBT.shape[2] + 1
    for s, c in np.argwhere(ended_SC[:, : config.beams]):
        logp, own = float(found.logp_SC[s, c]), float(found.own_SC[s, c])
        if texts[s].done or logp == -np.inf:
            continue
        token = int(found.tokens_SC[s, c])
        ids_T, end = prefix_SBT[s, found.beams_SC[s, c]], token if token in words.ends else None
        ids_T = np.append(ids_T, token) if end is None else ids_T.copy()
        texts[s].add(logp / length**config.length_penalty, Hypothesis(ids_T, own, end))


def _done(
    texts: list[_Text], logp_S: Float[np.ndarray, " S"], length: int, config: Decoding
) -> np.ndarray:
    """Which texts nothing more is looked for of; `logp_S`: of the likeliest that is under way."""
    late = config.early_stopping == "never" and config.length_penalty > 0
    for text, logp in zip(texts, logp_S, strict=True):
        enough = text.worst > -np.inf
        if config.beams > 1 and config.early_stopping is not True:
            best = logp / (text.limit if late else length) ** config.length_penalty
            enough = best <= text.worst
        text.done |= bool(enough or text.limit <= length or logp == -np.inf)
    return np.array([text.done for text in texts])
