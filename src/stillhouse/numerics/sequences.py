"""How close texts are: smoothed BLEU of a sentence, BLEU and chrF of a corpus as sums over its
sentences, and whether a text runs in circles.

Axes: N sentences, S statistics of a sentence.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.helpers import extract_all_char_ngrams

Tokens = Sequence[Hashable]
Smoothing = Literal["halving", "add_one"]
ORDERS = 4  # of BLEU's n-grams
CHARACTERS = 6  # of chrF's
TIMES = 4  # back to back: a text that says the same so many times runs in circles
LONG, SHARE = 12, 0.5  # so many 4-grams or more, and more than this share of them said before


def _ngrams(tokens: Tokens, order: int) -> Counter[tuple[Hashable, ...]]:
    return Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))


def _matches(hypothesis: Tokens, reference: Tokens) -> list[tuple[int, int]]:
    """Of each order: n-grams that are in the reference too, n-grams of the hypothesis."""
    found = []
    for order in range(1, ORDERS + 1):
        mine = _ngrams(hypothesis, order)
        both = mine & _ngrams(reference, order)
        found.append((both.total(), mine.total()))
    return found


def _halving(matches: list[tuple[int, int]]) -> float:
    numerator, product = 1.0, 1.0
    for matched, possible in matches:
        if possible and not matched:
            numerator /= 2
        if possible:
            product *= (matched or numerator) / possible
    return product


def _add_one(matches: list[tuple[int, int]]) -> float:
    if any(not possible for _, possible in matches):
        return 0.0
    return math.prod((matched + 1) / (possible + 1) for matched, possible in matches)


SMOOTHINGS: dict[str, Callable[[list[tuple[int, int]]], float]] = {
    "halving": _halving,
    "add_one": _add_one,
}


def sentence_bleu(hypothesis: Tokens, reference: Tokens, *, smoothing: Smoothing) -> float:
    """Smoothed BLEU of one sentence, 0 to 1: brevity penalty times the geometric mean of the
    precisions of 1- to 4-grams. 0 of a hypothesis without tokens.

    halving: of the orders without a match the first counts 1/2 a match, the next 1/4, and so on;
    orders longer than the hypothesis are left out, and the root stays the fourth (Kim & Rush 2016,
    seq2seq-attn's bleu.lua; there the hypothesis was scored with its end token and the reference
    without one: here both are scored as they are given).
    add_one: (matches + 1) / (n-grams + 1) in all orders; 0 of a hypothesis of fewer than four
    tokens (Marian's students, bestbleu.py).
    """
    if not hypothesis:
        return 0.0
    brevity = math.exp(1 - max(1.0, len(reference) / len(hypothesis)))
    product = SMOOTHINGS[smoothing](_matches(hypothesis, reference))
    return brevity * product ** (1 / ORDERS)


def closest(hypotheses: Sequence[Tokens], reference: Tokens, *, smoothing: Smoothing) -> int:
    """Which hypothesis has the highest sentence BLEU; of equal ones the first, which is the
    likelier where they come in a beam's order. Raises ValueError without hypotheses."""
    if not hypotheses:
        raise ValueError("there are no hypotheses to choose from")
    scores = [sentence_bleu(each, reference, smoothing=smoothing) for each in hypotheses]
    return scores.index(max(scores))


def repeats(tokens: Tokens) -> bool:
    """Whether a text runs in circles: it says an n-gram of any length TIMES times back to back, or
    has LONG 4-grams or more and said over SHARE of them before."""
    for period in range(1, len(tokens) // TIMES + 1):
        run = 0
        for i in range(period, len(tokens)):
            run = run + 1 if tokens[i] == tokens[i - period] else 0
            if run == period * (TIMES - 1):
                return True
    ngrams = _ngrams(tokens, 4)
    total = ngrams.total()
    return total >= LONG and (total - len(ngrams)) / total > SHARE


def bleu_statistics(hypotheses: Sequence[str], references: Sequence[str]) -> Int[np.ndarray, "N S"]:
    """What corpus BLEU is made of, per sentence, 13a-tokenised: lengths of hypothesis and
    reference, matches of 1- to 4-grams, n-grams. Sums over sentences go into `bleu_of`."""
    metric = BLEU(effective_order=True)  # of sentences, which it would warn about; counts are equal
    found = []
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        score = metric.sentence_score(hypothesis, [reference])
        found.append([score.sys_len, score.ref_len, *score.counts, *score.totals])
    return np.array(found, np.int64).reshape(-1, 2 + 2 * ORDERS)


def bleu_of(sums_S: Int[np.ndarray, " S"]) -> float:
    """sacrebleu's corpus BLEU, 0 to 100, of summed statistics."""
    sums = sums_S.tolist()
    matches, ngrams = sums[2 : 2 + ORDERS], sums[2 + ORDERS :]
    return BLEU.compute_bleu(matches, ngrams, sums[0], sums[1], smooth_method="exp").score


def chrf_statistics(hypotheses: Sequence[str], references: Sequence[str]) -> Int[np.ndarray, "N S"]:
    """What corpus chrF is made of, per sentence: of 1- to 6-grams of characters without white space
    those of the hypothesis, those of the reference, and matches. Sums go into `chrf_of`."""
    found = np.zeros((len(hypotheses), 3 * CHARACTERS), np.int64)
    for row, hypothesis, reference in zip(found, hypotheses, references, strict=True):
        pairs = zip(
            extract_all_char_ngrams(hypothesis, CHARACTERS, False),
            extract_all_char_ngrams(reference, CHARACTERS, False),
            strict=True,
        )
        for order, (mine, theirs) in enumerate(pairs):
            counted = mine.total() if theirs else 0  # sacrebleu: not where the reference has none
            row[3 * order : 3 * order + 3] = counted, theirs.total(), (mine & theirs).total()
    return found


def chrf_of(sums_S: Int[np.ndarray, " S"]) -> float:
    """sacrebleu's corpus chrF2, 0 to 100, of summed statistics: orders that one side lacks are
    left out of the mean precision and recall."""
    mine_O, theirs_O, both_O = sums_S.reshape(-1, 3).T
    used = (mine_O > 0) & (theirs_O > 0)
    if not both_O[used].any():
        return 0.0
    precision, recall = (float((both_O[used] / n[used]).mean()) for n in (mine_O, theirs_O))
    factor = CHRF.BETA**2
    return 100 * (1 + factor) * precision * recall / (factor * precision + recall)


def signatures() -> dict[str, str]:
    """How BLEU and chrF are computed, in sacrebleu's words."""
    metrics = {"bleu": BLEU(), "chrf": CHRF()}
    for metric in metrics.values():
        metric.corpus_score(["a"], [["a"]])  # the signature tells how many references there were
    return {name: str(metric.get_signature()) for name, metric in metrics.items()}
