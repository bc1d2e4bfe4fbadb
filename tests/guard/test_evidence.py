"""The tests: values by hand, exactness, and that they say nothing where there is nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from stillhouse.guard.evidence import (
    Table,
    conditional,
    difference,
    fisher,
    holm,
    permutation,
    power,
    table,
)


@pytest.mark.parametrize(
    ("found", "p"),
    [
        (Table(10, 5, 1000, 100), 1.8e-3),
        (Table(25, 13, 500, 50), 5.4e-7),
        (Table(50, 27, 1000, 100), 1.3e-13),
        (Table(67, 36, 670, 67), 2.1e-16),
        (Table(67, 11, 670, 67), 0.083),
    ],
)
def test_published_examples(found: Table, p: float) -> None:
    assert fisher(found) == pytest.approx(p, rel=0.05)


def test_fisher_is_scipys() -> None:
    found = Table(30, 9, 300, 31)
    theirs = stats.fisher_exact([[9, 21], [31, 269]], alternative="greater").pvalue
    assert fisher(found) == pytest.approx(float(theirs))


def test_by_hand_of_four_questions() -> None:
    """2 marks of 4 kept, 2 hits, both among the marks: 1 of the 6 ways."""
    assert fisher(Table(2, 2, 2, 0)) == pytest.approx(1 / 6)
    assert fisher(Table(2, 0, 2, 2)) == pytest.approx(1.0)


def test_nothing_is_no_evidence() -> None:
    assert fisher(Table(0, 0, 10, 3)) == 1.0
    assert fisher(Table(5, 0, 0, 0)) == 1.0
    assert fisher(Table(5, 0, 50, 0)) == 1.0
    assert difference(Table(0, 0, 3, 1)) == (0.0, (-1.0, 1.0))
    assert power(Table(0, 0, 10, 1), learned=0.5, alpha=1e-3) == 0.0


def test_a_model_that_never_saw_a_mark_is_rarely_accused() -> None:
    """Whatever its rate of hits: P(p <= alpha) <= alpha, by membership drawn at random."""
    rng = np.random.default_rng(0)
    for rate in (0.05, 0.5, 0.9):
        p_values = []
        for _ in range(800):
            hit_N = rng.random(440) < rate
            marked_N = np.zeros(440, bool)
            marked_N[rng.choice(440, 40, replace=False)] = True
            p_values.append(fisher(table(hit_N, marked_N)))
        for alpha in (0.01, 0.05, 0.2):
            assert np.mean(np.array(p_values) <= alpha) <= alpha + 3 * (alpha / 800) ** 0.5


def test_fresh_keys_find_what_fisher_finds() -> None:
    likely_N = np.zeros(110)
    likely_N[:4] = 1.0  # of two choices: whoever errs there hits, whatever the key
    p = permutation([(likely_N, 10)], 2, np.random.default_rng(1), keys=4000)
    assert p == pytest.approx(fisher(Table(10, 2, 100, 2)), abs=0.015)


def test_fresh_keys_draw_without_replacement() -> None:
    """Of 4 questions, 2 of them answered wrongly, 2 marks are both of these by 1 in 6."""
    p = permutation([(np.array([1.0, 1, 0, 0]), 2)], 2, np.random.default_rng(1), keys=4000)
    assert p == pytest.approx(1 / 6, abs=0.02)


def test_fresh_keys_choose_other_wrong_answers_too() -> None:
    """Of three choices a wrong answer is a fresh key's by half: Binomial(10, 1 / 2) >= 8."""
    p = permutation([(np.full(20, 0.5), 10)], 8, np.random.default_rng(1), keys=4000)
    assert p == pytest.approx(float(stats.binom.sf(7, 10, 0.5)), abs=0.015)


def test_fresh_keys_never_say_zero() -> None:
    p = permutation([(np.zeros(20), 2)], 2, np.random.default_rng(0), keys=99)
    assert p == 1 / 100


def test_strata_by_hand() -> None:
    """Two periods of 2 kept questions, 1 marked, 1 hit each: both hits are marks by 1 in 4."""
    one = Table(1, 1, 1, 0)
    assert fisher(one) == pytest.approx(1 / 2)
    assert fisher(one, one) == pytest.approx(1 / 4)


def test_one_stratum_in_parts_is_no_stronger() -> None:
    """More marks where there are more hits anyway prove nothing."""
    apart = fisher(Table(50, 45, 5, 4), Table(5, 0, 50, 1))
    assert apart > 0.3
    assert fisher(Table(55, 45, 55, 5)) < 1e-12


def test_a_p_value_is_never_nothing() -> None:
    assert 0 < fisher(Table(2000, 2000, 20_000, 0)) < 1e-200


def test_interval_by_newcombe() -> None:
    """Newcombe 1998, Table II (a): 56/70 minus 48/80, method 10: 0.0524 to 0.3339."""
    found, (low, high) = difference(Table(70, 56, 80, 48))
    assert found == pytest.approx(0.2)
    assert (low, high) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_of_strata_the_difference_is_within_them() -> None:
    """Shares that differ between periods are no effect of marks: 0.1 and -0.02, weighed alike."""
    found, (low, high) = difference(Table(50, 45, 5, 4), Table(5, 0, 50, 1))
    assert found == pytest.approx(0.04)
    assert low < 0 < high
    assert difference(Table(50, 45, 5, 4), Table(0, 0, 50, 1))[0] == pytest.approx(0.1)


def test_intervals_of_strata_hold_the_difference_as_often_as_they_say() -> None:
    rng = np.random.default_rng(4)
    held = []
    for _ in range(1500):
        strata = [
            Table(m, int(rng.binomial(m, p + 0.15)), c, int(rng.binomial(c, p)))
            for m, c, p in ((30, 250, 0.1), (20, 60, 0.5))
        ]
        _, (low, high) = difference(*strata)
        held.append(low <= 0.15 <= high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(
    "strata", [[Table(30, 0, 300, 30)], [Table(20, 0, 200, 2), Table(30, 0, 30, 15)]]
)
def test_power_is_how_often_copies_are_found(strata: list[Table]) -> None:
    """Where odds differ, of periods tested apart: not what all of them together would have."""
    rng = np.random.default_rng(2)
    learned, alpha = 0.3, 1e-3

    def copied(each: Table) -> Table:
        share = learned + (1 - learned) * each.chance
        return replace(each, hits=int(rng.binomial(each.marks, share)))

    found = [fisher(*map(copied, strata)) <= alpha for _ in range(2000)]
    expected = pytest.approx(np.mean(found), abs=0.04)
    assert power(*strata, learned=learned, alpha=alpha) == expected


def test_more_marks_are_more_power() -> None:
    strata = [Table(n, 0, 10 * n, n) for n in (10, 25, 50, 100)]
    found = [power(each, learned=0.5, alpha=1e-6) for each in strata]
    assert found == sorted(found)
    assert found[-1] > 0.99


def test_conditional_of_three_choices() -> None:
    assert conditional(3, 3, 3) == pytest.approx(1 / 8)
    assert conditional(3, 3, 2) == 1.0  # of two, the only other choice says nothing
    assert conditional(0, 0, 3) == 1.0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
