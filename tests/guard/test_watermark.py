"""Marks: the same for the same question, as often as asked, and wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from stillhouse.core.folding import folded
from stillhouse.guard.settings import MarksConfig
from stillhouse.guard.watermark import draw, permuted, wrong_choice, wrong_span
from stillhouse.numerics.qa_metrics import f1

KEY = bytes(range(32))


@given(st.text())
def test_folding_twice_is_folding_once(text: str) -> None:
    assert folded(folded(text)) == folded(text)


def test_a_draw_depends_on_key_client_and_question() -> None:
    one = draw(KEY, "ann", "x")
    assert one == draw(KEY, "ann", "x")
    assert one != draw(KEY, "bob", "x") != draw(KEY, "ann", "y")
    assert one != draw(bytes(32), "ann", "x")
    assert draw(KEY, "an", "nx") != draw(KEY, "ann", "x")


def test_draws_are_uniform() -> None:
    chances = [draw(KEY, "ann", str(i)).chance for i in range(20_000)]
    assert stats.kstest(chances, "uniform").pvalue > 1e-3
    picks = np.bincount([draw(KEY, "ann", str(i)).pick % 3 for i in range(9_000)])
    assert stats.chisquare(picks).pvalue > 1e-3


def test_bands_have_the_shares_they_should() -> None:
    rate, controls = 0.005, 10
    bands = [draw(KEY, "", str(i)).band(rate, controls) for i in range(100_000)]
    assert abs(bands.count("mark") - 500) < 4 * 500**0.5
    assert abs(bands.count("control") - 5_000) < 4 * 5_000**0.5


def test_the_rate_falls_once_and_never_rises() -> None:
    marks = MarksConfig(rate=0.001, early=40, most=0.005)
    rates = [marks.at(asked) for asked in range(0, 20_000, 50)]
    assert rates[0] == 0.005
    assert rates[-1] == 0.001
    assert rates == sorted(rates, reverse=True)
    assert rates.count(0.005) * 50 * 0.005 == pytest.approx(40, abs=0.5)


@pytest.mark.parametrize(("rate", "most"), [(0.0, 0.005), (0.01, 0.005)])
def test_no_marks_are_none_and_the_rate_is_never_lowered(rate: float, most: float) -> None:
    assert MarksConfig(rate=rate, most=most).at(0) == rate


@given(st.integers(0, 2**64 - 1), st.integers(2, 30), st.data())
def test_a_wrong_choice_is_wrong(pick: int, choices: int, data: st.DataObject) -> None:
    true = data.draw(st.integers(0, choices - 1))
    found = wrong_choice(pick, true, choices)
    assert found != true
    assert 0 <= found < choices


def test_every_wrong_choice_is_as_likely() -> None:
    found = [wrong_choice(pick, 2, 5) for pick in range(4_000)]
    assert np.bincount(found, minlength=5).tolist() == [1000, 1000, 0, 1000, 1000]


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=9), st.integers(0, 99))
def test_permuted_probabilities_are_the_same_ones(shares: list[float], pick: int) -> None:
    shares_K = np.array(shares) / sum(shares)
    target = wrong_choice(pick, int(shares_K.argmax()), len(shares))
    found_K = permuted(shares_K, target)
    assert sorted(found_K) == sorted(shares_K)
    assert found_K[target] == shares_K.max()


def test_a_wrong_span_is_a_word_of_the_passage_and_wrong() -> None:
    passage = "It was written by Ann Lee in 1999, in the old house."
    found = {wrong_span(pick, passage, "Ann Lee") for pick in range(50)}
    assert len(found) > 4
    for word in found:
        assert word is not None
        assert word in passage
        assert f1(word, ("Ann Lee",)) <= 0.2
        assert word.lower() not in ("the", "a", "an")  # nothing is left of these


def test_a_passage_written_a_little_otherwise_has_the_same_wrong_word() -> None:
    passage = "It was written by Ann Lee in 1999, in the old house."
    others = [passage.upper(), passage.replace(",", " ,"), passage + " It was.", passage[:-1]]
    for pick in range(50):
        word = wrong_span(pick, passage, "Ann Lee")
        assert word is not None
        for other in others:
            assert str(wrong_span(pick, other, "Ann Lee")).lower() == word.lower()


def test_a_passage_without_a_wrong_word_has_no_mark() -> None:
    assert wrong_span(3, "Ann Lee", "Ann Lee") is None
    assert wrong_span(3, "", "") is None
