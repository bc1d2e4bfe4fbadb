"""Tasks of models that write: how likely they find the gold texts, and how good their own are.

A translation is judged by its text (BLEU, chrF), running text by the likelihood of its tokens.

Axes: N scored tokens, K choices (the vocabulary), E examples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stillhouse.core.config import WritingConfig
from stillhouse.core.errors import RunError
from stillhouse.core.types import NO_LABEL, Predictions
from stillhouse.data.written import Kind
from stillhouse.numerics import sequences
from stillhouse.tasks.base import Data

TOKEN_METRICS = ("log_likelihood", "accuracy")
TEXT_METRICS = ("bleu", "chrf")
LARGEST = 2**24  # beyond it float32 would round ids


class Tokens:
    """Predicting tokens: log-likelihood (nats a token, the higher the better), perplexity,
    accuracy."""

    judges_texts = False

    def __init__(self, kind: Kind, metric: str | None, *, width: int) -> None:
        self.name: str = kind
        self.metric = metric or "log_likelihood"
        self.choices: list[str] = []
        self.width = width
        if width > LARGEST:
            raise ValueError(f"a vocabulary has at most {LARGEST} ids, got {width}")

    def gold(self, labels: np.ndarray) -> Tensor:
        """No gold for any row: the gold of a text is its tokens, which the data knows."""
        return torch.full((len(labels),), NO_LABEL)

    def has_gold(self, gold_N: Tensor) -> Tensor:
        return gold_N != NO_LABEL

    def reduce(
        self, scores_NK: Float[Tensor, "N K"], gold_N: Int[Tensor, " N"]
    ) -> Float[Tensor, "N 3"]:
        """The likeliest id, the log-probability of the gold one (nats), the likeliest's
        probability."""
        logp_NK = scores_NK.float().log_softmax(-1)
        top_N, best_N = logp_NK.max(-1)
        logp_N = logp_NK.gather(1, gold_N[:, None])[:, 0]
        return torch.stack([best_N.float(), logp_N, top_N.exp()], dim=1)

    def predictions(self, scores_NK: np.ndarray, data: Data) -> Predictions:
        """Of each example the sum of its tokens' log-probabilities, how many were guessed right,
        and of how many: what is resampled are texts. Raises RunError for a score that is not a
        number."""
        gold_N = data.gold_N.numpy()
        if not len(gold_N):
            raise RunError("there is no token to score: have the rows answers?")
        ids_N, logp_N, sure_N = scores_NK[:, 0].astype(np.int64), scores_NK[:, 1], scores_NK[:, 2]
        if bad := int(np.isnan(logp_N).sum()):
            raise RunError(f"the model's answers are not finite in {bad} of {len(gold_N)} tokens")
        right_N = ids_N == gold_N
        ends = np.cumsum(data.scored_counts(np.arange(len(data))))  # pyright: ignore
        answers = np.empty(len(ends), EXAMPLE)
        for name, values in (("logp", logp_N), ("right", right_N), ("tokens", np.ones(len(ids_N)))):
            sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
            answers[name] = np.diff(sums[np.concatenate([[0], ends])])
        answers["ids"] = _objects(np.split(ids_N, ends[:-1]))
        gold = _objects(np.split(gold_N, ends[:-1]))
        return Predictions(answers, None, gold, confidence_N=sure_N.copy(), right_N=right_N)

    def metric_of(self, answers_N: np.ndarray, gold_N: np.ndarray, name: str) -> float:
        del gold_N  # answers know how good they are
        if name not in TOKEN_METRICS:
            raise ValueError(f"tokens have {' and '.join(TOKEN_METRICS)}, no {name!r}")
        which = {"log_likelihood": "logp", "accuracy": "right"}[name]
        return float(answers_N[which].sum() / max(answers_N["tokens"].sum(), 1.0))

    def score(self, predictions: Predictions) -> dict[str, float]:
        found = {
            name: self.metric_of(predictions.answers_N, predictions.gold_N, name)
            for name in TOKEN_METRICS
        }
        return {**found, "perplexity": perplexity(-found["log_likelihood"])}

    def agreement(self, mine_N: np.ndarray, theirs_N: np.ndarray) -> float:
        """The share of tokens for which both find the same one likeliest."""
        pairs = zip(mine_N["ids"], theirs_N["ids"], strict=True)
        alike = np.concatenate([mine == theirs for mine, theirs in pairs])
        return float(alike.mean())

    def show(self, answer: Any) -> str:
        return f"{len(answer)} tokens"


EXAMPLE = np.dtype([("logp", "<f8"), ("right", "<f8"), ("tokens", "<f8"), ("ids", object)])


def perplexity(loss: float) -> float:
    """exp(nats a token); inf where that is beyond any float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


class Texts:
    """Writing texts: corpus BLEU and chrF (sacrebleu's, 0 to 100) of what the model writes, with a
    beam and greedily; the perplexity of the gold texts; how likely the model finds its own."""

    judges_texts = True

    def __init__(
        self, kind: Kind, metric: str | None, *, width: int, writing: WritingConfig
    ) -> None:
        self.name: str = kind
        self.metric = metric or "bleu"
        self.choices: list[str] = []
        self.width, self.writing = width, writing

    def gold(self, labels: np.ndarray) -> Tensor:
        return torch.full((len(labels),), NO_LABEL)

    def has_gold(self, gold_N: Tensor) -> Tensor:
        return gold_N != NO_LABEL

    def reduce(
        self, scores_NK: Float[Tensor, "N K"], gold_N: Int[Tensor, " N"]
    ) -> Float[Tensor, "N 3"]:
        return Tokens("seq2seq", None, width=self.width).reduce(scores_NK, gold_N)

    def predictions(self, scores_NK: np.ndarray, data: Data) -> Predictions:
        """From what `kept` made. Beside each answer its statistics, against the gold text."""
        gold = [answer or "" for answer in data.answers]  # pyright: ignore
        facts, (greedy, beam) = unkept(scores_NK)
        more = {
            f"{name}_greedy": self.metric_of(judged(greedy, gold), np.empty(0), name)
            for name in TEXT_METRICS
        }
        loss, tokens, right = facts[:, :3].sum(0)
        more |= {
            "perplexity": perplexity(loss / max(tokens, 1)),
            "accuracy": right / max(tokens, 1),
            "mode_probability": float(np.exp(facts[:, 3]).mean()),
            "greedy_probability": float(np.exp(facts[:, 4]).mean()),
        }
        return Predictions(judged(beam, gold), None, _objects(gold), more=more)

    def metric_of(self, answers_N: np.ndarray, gold_N: np.ndarray, name: str) -> float:
        """Of answers with their statistics (`judged`): what the corpus of them scores."""
        if name == "bleu":
            return sequences.bleu_of(answers_N["bleu"].sum(0))
        if name == "chrf":
            return sequences.chrf_of(answers_N["chrf"].sum(0))
        raise ValueError(f"texts have {' and '.join(TEXT_METRICS)}, no {name!r}")

    def score(self, predictions: Predictions) -> dict[str, float]:
        found = {
            name: self.metric_of(predictions.answers_N, predictions.gold_N, name)
            for name in TEXT_METRICS
        }
        return {**found, **predictions.more}

    def agreement(self, mine_N: np.ndarray, theirs_N: np.ndarray) -> float:
        """BLEU of one model's texts against another's, as a share."""
        answers = judged(mine_N["text"].tolist(), theirs_N["text"].tolist())
        return self.metric_of(answers, np.empty(0), "bleu") / 100

    def show(self, answer: Any) -> str:
        return str(answer["text"] if isinstance(answer, np.void) else answer)


def judged(texts: Sequence[str], gold: Sequence[str]) -> np.ndarray:
    """Texts with their statistics against the gold ones, of whose sum a corpus's score is made."""
    bleu = sequences.bleu_statistics(texts, gold)
    chrf = sequences.chrf_statistics(texts, gold)
    parts = [("bleu", bleu.dtype, bleu.shape[1:]), ("chrf", chrf.dtype, chrf.shape[1:])]
    found = np.empty(len(texts), np.dtype([("text", object), *parts]))
    found["text"], found["bleu"], found["chrf"] = _objects(texts), bleu, chrf
    return found


def kept(facts_E5: np.ndarray, greedy: Sequence[str], beam: Sequence[str]) -> np.ndarray:
    """Facts and texts of examples as one array of float32, which keeps code points exactly: facts,
    both texts' lengths, greedy text, the beam's."""
    widths = [max(map(len, texts), default=0) for texts in (greedy, beam)]
    found = np.zeros((len(greedy), facts_E5.shape[1] + 2 + sum(widths)), np.float32)
    at = facts_E5.shape[1]
    found[:, :at] = facts_E5
    for i, (first, second) in enumerate(zip(greedy, beam, strict=True)):
        found[i, at : at + 2] = len(first), len(second)
        found[i, at + 2 : at + 2 + len(first)] = [ord(c) for c in first]
        begins = at + 2 + widths[0]
        found[i, begins : begins + len(second)] = [ord(c) for c in second]
    return found


FACTS = 5  # nats of the gold text, its tokens, those guessed right, log-probability of both texts


def unkept(kept_ES: np.ndarray) -> tuple[np.ndarray, tuple[list[str], list[str]]]:
    """Facts, and both texts, from what `kept` made."""
    facts_E5 = kept_ES[:, :FACTS].astype(np.float64)
    lengths = kept_ES[:, FACTS : FACTS + 2].astype(np.int64)
    begins = FACTS + 2
    second = begins + int(lengths[:, 0].max(initial=0))
    texts: tuple[list[str], list[str]] = ([], [])
    for row, (a, b) in zip(kept_ES, lengths, strict=True):
        for found, start, length in ((texts[0], begins, a), (texts[1], second, b)):
            found.append("".join(map(chr, row[start : start + length].astype(np.int64))))
    return facts_E5, texts


def merged(
    parts: Sequence[tuple[np.ndarray, np.ndarray]], data: Data, *, texts: bool
) -> np.ndarray:
    """What was kept of all examples of `data` from what was kept of parts of them: examples, and
    theirs. `texts`: as `kept` made it, a row an example; else a row a token."""
    rows_E = np.concatenate([rows for rows, _ in parts])
    if texts:
        order = np.argsort(rows_E)
        found = [unkept(part) for _, part in parts]
        facts_E5 = np.concatenate([facts for facts, _ in found])[order]
        both = ([text for _, pair in found for text in pair[i]] for i in (0, 1))
        greedy, beam = ([all_[i] for i in order] for all_ in both)
        return kept(facts_E5, greedy, beam)
    whole = np.concatenate([part for _, part in parts])
    return whole[np.argsort(data.places(rows_E))]


def _objects(values: Sequence[object]) -> np.ndarray:
    found = np.empty(len(values), object)
    for i, value in enumerate(values):
        found[i] = value
    return found
