"""One comparison for all: the gain, and which of the five words it comes to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stillhouse.core.results import Needed
from stillhouse.core.units import amount, better, margin_of, span_of
from stillhouse.evaluation import comparison
from stillhouse.evaluation.comparison import Comparison, compare
from stillhouse.tasks.classification import Classification
from stillhouse.tasks.regression import Regression

TASK = Classification(["a", "b"], None)
ROWS = 400
GOLD_N = np.arange(ROWS) % 2


def answers(wrong: int, *, first: int = 0) -> np.ndarray:
    """All right but `wrong` rows, from the row `first` on."""
    found_N = GOLD_N.copy()
    found_N[first : first + wrong] = 1 - found_N[first : first + wrong]
    return found_N


def judged(mine: list[np.ndarray], theirs: list[np.ndarray], **changes: Any) -> Comparison:
    how: dict[str, Any] = {"margin": None, "resamples": 400, "rng": np.random.default_rng(0)}
    return compare(changes.pop("task", TASK), mine, theirs, GOLD_N, **how | changes)


def test_a_clear_gain_is_named_with_its_margin_and_seeds() -> None:
    found = judged([answers(4), answers(5)], [answers(90), answers(91)])
    assert (found.verdict, found.gain.reason) == ("helped", None)
    assert found.gain.value == pytest.approx(86 / 400)
    assert (found.gain.margin, found.gain.seeds, found.gain.needed) == (0.01, 2, None)
    back = judged([answers(90), answers(91)], [answers(4), answers(5)])
    assert back.verdict == "hurt"


def test_a_margin_in_points_decides_what_no_difference_is() -> None:
    mine, theirs = [answers(8), answers(9)], [answers(9), answers(8)]
    assert judged(mine, theirs).verdict == "can't tell"
    wide = judged(mine, theirs, margin=20)
    assert (wide.verdict, wide.gain.margin) == ("no difference", 0.2)


def test_what_would_decide_is_said_where_it_is_open() -> None:
    found = judged([answers(20, first=100)], [answers(30)])
    assert found.verdict == "can't tell"
    assert found.gain.needed is not None
    assert found.gain.needed.more_seeds is None, "one seed says nothing of others"
    more = found.gain.needed.more_rows
    assert more is not None
    assert 100 < more < 20_000


@pytest.mark.parametrize(
    ("share", "margin", "comparable"),
    [
        (0.0, None, True),
        (0.0075, None, True),
        (0.01, None, False),
        (0.02, 3, True),
        (1e-4, 0, False),
    ],
)
def test_rows_that_the_teacher_knew_make_nothing_comparable(
    share: float, margin: float | None, comparable: bool
) -> None:
    sides = [answers(4), answers(5)], [answers(90), answers(91)]
    found = judged(*sides, seen=share, margin=margin)
    assert (found.verdict == "helped") is comparable
    if not comparable:
        assert found.verdict == "not comparable"
        said = f"was trained on {100 * share:.1f} % of the test rows"
        assert found.gain.reason == f"one of the models, or what it is made of, {said}"


def test_two_sides_that_learnt_nothing_are_not_comparable() -> None:
    zeros, ones = np.zeros(ROWS, int), np.ones(ROWS, int)
    found = judged([zeros, ones], [ones, ones])
    assert found.verdict == "not comparable"
    assert found.gain.reason is not None
    assert "neither learned" in found.gain.reason
    assert judged([zeros, answers(3)], [ones, ones]).verdict != "not comparable"
    assert judged([answers(3), answers(4)], [ones, ones]).verdict == "helped"


def test_rows_of_one_class_tell_nothing_apart() -> None:
    """Two models that are right on all of them have learnt it, for all one knows."""
    ones = np.ones(ROWS, int)
    found = compare(
        TASK, [ones], [ones], ones, margin=None, resamples=20,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    assert found.verdict == "not comparable"
    assert found.gain.reason == "the test rows have one answer only, so they tell nothing apart"


def test_values_that_are_all_the_same_learnt_nothing_either() -> None:
    flat = np.full(ROWS, 0.5)
    found = judged([flat], [flat], task=Regression("pearson"))
    assert found.verdict == "not comparable"


@pytest.mark.parametrize(
    ("metric", "asked", "margin"),
    [
        ("accuracy", None, 0.01),
        ("pearson", None, 0.01),
        ("bleu", None, 1.0),
        ("log_likelihood", None, 0.01),
        ("accuracy", 2.5, 0.025),
        ("chrf", 0.5, 0.5),
        ("log_likelihood", 0.1, 0.1),
        ("macro_f1", 0, 0.0),
    ],
)
def test_a_margin_is_in_points_or_nats(metric: str, asked: float | None, margin: float) -> None:
    assert margin_of(metric, asked) == pytest.approx(margin)


def test_units_of_a_difference() -> None:
    assert amount(-0.0123, "accuracy") == "1.2 points"
    assert amount(1.0, "bleu") == "1.0 points"
    assert amount(0.01, "log_likelihood") == "0.010 nats a token"
    assert (span_of("accuracy"), span_of("bleu")) == (1.0, 100.0)
    assert better(0.9, 0.8, "accuracy")
    assert not better(0.8, 0.8, "accuracy")
    assert better(8.0, 9.0, "perplexity")


def test_needed_is_none_where_nothing_is_open() -> None:
    same = judged([answers(3)] * 2, [answers(3)] * 2)
    assert same.verdict in ("no difference", "can't tell")
    assert (same.gain.needed is None) == (same.verdict == "no difference")
    assert Needed(more_seeds=None, more_rows=None).more_rows is None


@pytest.mark.parametrize(("metric", "margin"), [("accuracy", 0.01), ("bleu", 1.0)])
def test_rows_that_were_known_count_in_the_metrics_own_range(metric: str, margin: float) -> None:
    """One in a hundred can move BLEU by a point, as it moves a share by 0.01."""
    assert comparison.trained_on(0.005, margin, metric) is None
    assert comparison.trained_on(0.012, margin, metric) is not None


def test_texts_that_are_all_the_same_learnt_nothing_and_likelihoods_are_no_answers() -> None:
    gold = np.array(["yes", "no"], object)
    of_texts: Any = [("text", object), ("bleu", int, 2)]
    of_sums: Any = [("log_likelihood", float), ("tokens", float)]
    texts = np.array([("yes", [1, 2]), ("yes", [3, 4])], of_texts)
    assert comparison._nothing_learnt([texts, texts], gold) is not None
    others = np.array([("yes", [1, 2]), ("no", [1, 2])], of_texts)
    assert comparison._nothing_learnt([texts, others], gold) is None
    sums = np.array([(-1.0, 2.0), (-1.0, 2.0)], of_sums)
    assert comparison._nothing_learnt([sums, sums], sums) is None
