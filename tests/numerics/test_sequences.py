"""Sentence BLEU by hand, corpus BLEU and chrF as sacrebleu has them.

Axes: N sentences, S statistics of a sentence.
"""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import sacrebleu

from stillhouse.numerics.sequences import (
    bleu_of,
    bleu_statistics,
    chrf_of,
    chrf_statistics,
    closest,
    repeats,
    sentence_bleu,
    signatures,
)


def test_halving_by_hand() -> None:
    """a b c d e against a b x c d: 4 of 5 words, ab and cd of 4 pairs, no triple of 3 (1/2), no
    quadruple of 2 (1/4)."""
    product = 4 / 5 * 2 / 4 * 0.5 / 3 * 0.25 / 2
    found = sentence_bleu(list("abcde"), list("abxcd"), smoothing="halving")
    assert found == pytest.approx(product**0.25, rel=1e-12)


def test_halving_leaves_orders_out_that_a_short_text_lacks() -> None:
    """a b against a c b: both words, no pair of 1 (1/2); the root stays the fourth."""
    found = sentence_bleu(["a", "b"], ["a", "c", "b"], smoothing="halving")
    assert found == pytest.approx(math.exp(1 - 3 / 2) * (2 / 2 * 0.5 / 1) ** 0.25, rel=1e-12)


def test_add_one_by_hand() -> None:
    product = (4 + 1) / 6 * (2 + 1) / 5 * 1 / 4 * 1 / 3
    found = sentence_bleu(list("abcde"), list("abxcd"), smoothing="add_one")
    assert found == pytest.approx(product**0.25, rel=1e-12)
    assert sentence_bleu(["a", "b", "c"], ["a", "b", "c"], smoothing="add_one") == 0.0


def test_matches_are_clipped() -> None:
    """the the the against the cat: one "the" counts."""
    found = sentence_bleu(["the"] * 3, ["the", "cat"], smoothing="halving")
    assert found == pytest.approx((1 / 3 * 0.5 / 2 * 0.25 / 1) ** 0.25, rel=1e-12)


@pytest.mark.parametrize("smoothing", ["halving", "add_one"])
def test_limits(smoothing) -> None:
    tokens = list("abcdefg")
    assert sentence_bleu(tokens, tokens, smoothing=smoothing) == 1.0
    assert sentence_bleu([], tokens, smoothing=smoothing) == 0.0
    assert sentence_bleu(tokens, [], smoothing=smoothing) < 0.2
    half = sentence_bleu(tokens[:4], tokens[:8], smoothing=smoothing)
    assert half == pytest.approx(math.exp(1 - 7 / 4))


def test_add_one_is_sacrebleus_where_all_words_match() -> None:
    """sacrebleu's add-k leaves the single words alone: where all match they are 1 either way."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        reference = [f"w{i}" for i in rng.permutation(12)]
        hypothesis = [str(w) for w in rng.permutation(reference)[: rng.integers(4, 13)]]
        theirs = sacrebleu.sentence_bleu(
            " ".join(hypothesis),
            [" ".join(reference)],
            smooth_method="add-k",
            smooth_value=1,
            use_effective_order=False,
        )
        mine = sentence_bleu(hypothesis, reference, smoothing="add_one")
        assert mine == pytest.approx(theirs.score / 100, rel=1e-9)


def test_halving_is_sacrebleus_exp_where_no_order_is_missing() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        hypothesis, reference = (rng.choice(list("abcde"), rng.integers(4, 12)) for _ in range(2))
        if not set(hypothesis) & set(reference):
            continue  # 0 there
        theirs = sacrebleu.sentence_bleu(" ".join(hypothesis), [" ".join(reference)])
        mine = sentence_bleu(hypothesis.tolist(), reference.tolist(), smoothing="halving")
        assert mine == pytest.approx(theirs.score / 100, rel=1e-9)


def test_closest_takes_the_first_of_equals() -> None:
    reference = list("abcd")
    hypotheses = [list("xxxx"), list("abcx"), list("abcx"), list("abxx")]
    assert closest(hypotheses, reference, smoothing="halving") == 1
    assert closest([["x"], ["y"]], reference, smoothing="add_one") == 0
    with pytest.raises(ValueError, match="no hypotheses"):
        closest([], reference, smoothing="halving")


@pytest.mark.parametrize(
    "text",
    [
        "ha ha ha ha",
        "he said that a b a b a b a b",
        "one two three " * 4,
    ],
)
def test_loops_are_seen(text: str) -> None:
    assert repeats(text.split())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "very very very good",
        "a b a b a b a",
        "the man and the woman and the boy and the girl and the dog and the cat",
        "one two three four " * 3,
    ],
)
def test_what_is_said_a_few_times_is_no_loop(text: str) -> None:
    assert not repeats(text.split())


def test_a_long_text_that_has_said_most_of_it_before_is_a_loop() -> None:
    words = [f"w{i}" for i in range(10)]
    said = [*words, "a", *words, "b", *words, "c"]
    assert repeats([*said, *words])  # 7 + 7 + 7 of 40 4-grams
    assert not repeats([*said, *words[:8]])  # 7 + 7 + 5 of 38
    assert not repeats([*words, "a", *words, "b", *[f"v{i}" for i in range(10)]])


SENTENCES = [
    ("The cat sat on the mat.", "The cat sat on the mat."),
    ("A dog, running; fast!", "A dog runs fast over the lawn."),
    ("Two men", "Two men are standing at a 3.5 km-long fence."),
    ("", "Nothing was said."),
    ("Zwei Männer  stehen (hier).  ", "Zwei junge Männer stehen hier."),
    ("x", "y"),
    ("ab", "abcdefgh"),
    ("abcdefgh", "ab"),
]


def columns(pairs: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    return [h for h, _ in pairs], [r for _, r in pairs]


@pytest.mark.parametrize("seed", range(30))
def test_sums_of_statistics_are_sacrebleus_scores(seed: int) -> None:
    """Whole, and of resamples down to a single sentence."""
    hypotheses, references = columns(SENTENCES)
    bleu_NS = bleu_statistics(hypotheses, references)
    chrf_NS = chrf_statistics(hypotheses, references)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(SENTENCES), size=1 + seed % 9)
    drawn = np.arange(len(SENTENCES)) if seed == 0 else drawn
    mine, theirs = columns([SENTENCES[i] for i in drawn])
    assert bleu_of(bleu_NS[drawn].sum(0)) == sacrebleu.corpus_bleu(mine, [theirs]).score
    expected = sacrebleu.corpus_chrf(mine, [theirs]).score
    assert chrf_of(chrf_NS[drawn].sum(0)) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_signatures_are_sacrebleus() -> None:
    metric = sacrebleu.metrics.BLEU()  # pyright: ignore
    metric.corpus_score(["b"], [["c"]])
    assert signatures()["bleu"] == str(metric.get_signature())
    assert "tok:13a|smooth:exp" in signatures()["bleu"]
    assert "nc:6|nw:0" in signatures()["chrf"]


def test_resampling_takes_moments() -> None:
    hypotheses, references = columns(SENTENCES * 143)
    bleu_NS = bleu_statistics(hypotheses, references)
    chrf_NS = chrf_statistics(hypotheses, references)
    rng, started = np.random.default_rng(0), time.perf_counter()
    for _ in range(200):
        drawn = rng.integers(len(bleu_NS), size=len(bleu_NS))
        bleu_of(bleu_NS[drawn].sum(0)), chrf_of(chrf_NS[drawn].sum(0))
    assert time.perf_counter() - started < 1.0  # 2,000 in seconds


def test_sides_must_be_of_one_length() -> None:
    for statistics in (bleu_statistics, chrf_statistics):
        with pytest.raises(ValueError, match=r"zip\(\)"):
            statistics(["a", "b"], ["a"])
        assert len(statistics([], [])) == 0
