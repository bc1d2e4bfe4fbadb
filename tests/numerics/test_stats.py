# S seeds, N rows, K choices.

import math
from functools import partial

import numpy as np
import pytest
import scipy.stats

from stillhouse.numerics.gains import (
    Needed,
    PairedGain,
    Spread,
    verdict,
    what_would_decide,
)
from stillhouse.numerics.metrics import (
    accuracy,
    macro_f1,
    matthews,
    spearman,
)
from stillhouse.numerics.stats import bootstrap_interval, paired_gain


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def share_right(pred_N, gold_N) -> float:
    """Accuracy without the shape checks, for the simulations."""
    return np.count_nonzero(pred_N == gold_N) / len(gold_N)


def mean_value(pred_N, gold_N) -> float:
    return float(pred_N.mean())


# --- intervals --------------------------------------------------------------------------------


def simulated(generator, *, seeds: int, rows: int, seed_sd: float, lead: float = 0.0):
    """Predictions of two recipes whose chance to be right differs by `lead` on the logit scale.

    Rows are hard for both recipes alike and for each recipe on its own; each trained model has
    its own overall level. All three vary from one simulated study to the next.
    """
    hardness_N = generator.normal(1.5, 1.0, rows)

    def recipe(shift: float):
        own_N = generator.normal(0, 0.7, rows)
        level_S1 = generator.normal(shift, seed_sd, (seeds, 1))
        odds_SN = np.exp(hardness_N + own_N + level_S1)
        return (generator.random((seeds, rows)) < odds_SN / (1 + odds_SN)).astype(int)

    return recipe(lead), recipe(0.0), np.ones(rows, int)


def test_interval_with_one_seed_is_the_bootstrap_of_rows():
    pred_N, gold_N = (rng().random(200) < 0.8).astype(int), np.ones(200, int)
    found = bootstrap_interval(accuracy, [pred_N], gold_N, rng=rng(1))
    rows = scipy.stats.bootstrap(
        ((pred_N == gold_N).astype(float),), np.mean, method="percentile", rng=rng(2)
    )
    assert found == pytest.approx(tuple(rows.confidence_interval), abs=0.006)


def test_interval_of_seeds_alone_is_students_t():
    scores_S = np.array([0.7, 0.8, 0.75])
    preds_SN = np.repeat(scores_S[:, None], 50, axis=1)  # every row alike: no noise in rows
    found = bootstrap_interval(mean_value, preds_SN, np.zeros(50), rng=rng(), resamples=10)
    expected = scipy.stats.t.interval(0.95, 2, scores_S.mean(), scipy.stats.sem(scores_S))
    assert found == pytest.approx(expected)


def test_interval_is_cut_to_the_metrics_range():
    preds_SN = np.repeat(np.array([[0.9], [1.0]]), 50, axis=1)
    call = partial(bootstrap_interval, mean_value, preds_SN, np.zeros(50), resamples=10)
    assert call(rng=rng())[1] > 1
    assert call(rng=rng(), bounds=(0.5, 1.0)) == (0.5, 1.0)


def test_interval_covers_where_resampling_seeds_does_not():
    covered = naive_covered = 0
    studies, resamples = 200, 80
    generator = rng(3)
    for _ in range(studies):
        levels_S1 = generator.normal(0.0, 1.0, (3, 1))
        preds_SN = levels_S1 + generator.normal(0, 3.0, 40) + generator.normal(0, 1.0, (3, 40))
        gold_N = np.zeros(40)
        low, high = bootstrap_interval(
            mean_value, preds_SN, gold_N, rng=generator, resamples=resamples
        )
        covered += low < 0 < high
        means_R = [
            preds_SN[generator.integers(3, size=3)][:, generator.integers(40, size=40)].mean()
            for _ in range(resamples)
        ]
        low, high = np.quantile(means_R, [0.025, 0.975])
        naive_covered += low < 0 < high
    assert covered / studies >= 0.93
    assert naive_covered / studies < 0.9


# --- paired gain ------------------------------------------------------------------------------


def test_gain_by_hand():
    gold_N = np.array([0, 1, 0, 1])
    student = [np.array([0, 1, 0, 1]), np.array([0, 1, 0, 0])]
    baseline = [np.array([0, 1, 1, 0]), np.array([1, 1, 0, 0])]
    gain = paired_gain(accuracy, student, baseline, gold_N, rng=rng(), resamples=10)
    assert gain.value == pytest.approx((0.5 + 0.0 + 0.25) / 2 - 0.0)


def test_gain_of_a_model_over_itself_is_nothing():
    preds_SN, _, gold_N = simulated(rng(), seeds=3, rows=50, seed_sd=0.3)
    gain = paired_gain(accuracy, preds_SN, preds_SN, gold_N, rng=rng(), resamples=50)
    assert (gain.value, gain.p_value, verdict(gain, 0)) == (0.0, 1.0, "can't tell")
    assert 2 / 50 < gain.interval[1] < 3 / 50  # what 50 rows without a difference can't exclude
    values_SN = preds_SN.astype(float)
    same = paired_gain(mean_value, values_SN, values_SN, gold_N, rng=rng(), resamples=50)
    assert same == PairedGain(0.0, (0.0, 0.0), 1.0)


def test_swapping_sides_mirrors_the_gain():
    student_SN, baseline_SN, gold_N = simulated(rng(4), seeds=3, rows=80, seed_sd=0.3, lead=0.5)
    there = paired_gain(accuracy, student_SN, baseline_SN, gold_N, rng=rng(5), resamples=50)
    back = paired_gain(accuracy, baseline_SN, student_SN, gold_N, rng=rng(5), resamples=50)
    assert back.value == -there.value
    assert back.interval == pytest.approx((-there.interval[1], -there.interval[0]))
    assert back.p_value == pytest.approx(there.p_value)


def test_one_seed_is_the_paired_t_test_over_rows():
    student_SN, baseline_SN, gold_N = simulated(rng(6), seeds=1, rows=300, seed_sd=0.0, lead=0.5)
    gain = paired_gain(accuracy, student_SN, baseline_SN, gold_N, rng=rng(), resamples=4000)
    expected = scipy.stats.ttest_rel(student_SN[0], baseline_SN[0])
    low, high = expected.confidence_interval()
    assert gain.interval == pytest.approx((low, high), abs=0.05 * (high - low))
    assert math.log(gain.p_value) == pytest.approx(math.log(expected.pvalue), rel=0.1)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_seeds_without_row_noise_are_the_t_test_over_seeds(level):
    gains_S = np.array([0.3, 0.1, 0.25, 0.2])
    student_SN = np.repeat(gains_S[:, None], 5000, axis=1)
    gain = paired_gain(
        mean_value,
        student_SN,
        np.zeros_like(student_SN),
        np.zeros(5000),
        rng=rng(),
        resamples=3,
        level=level,
    )
    expected = scipy.stats.ttest_1samp(gains_S, 0)
    assert gain.p_value == pytest.approx(expected.pvalue)
    assert gain.interval == pytest.approx(tuple(expected.confidence_interval(level)))


def test_interval_has_the_documented_width():
    # crossed noise of rows and of seeds in rows; the variances by analysis of variance
    generator = rng(7)
    level_S1, row_N = np.array([[0.0], [0.02], [0.05]]), generator.normal(0, 0.5, 200)
    student_SN = 0.1 + level_S1 + row_N + generator.normal(0, 0.2, (3, 200))
    gain = paired_gain(
        mean_value,
        student_SN,
        np.zeros_like(student_SN),
        np.zeros(200),
        rng=rng(),
        resamples=8000,
    )
    covariance_SS = np.cov(student_SN, ddof=0) / 200
    shared = (covariance_SS.sum() - np.trace(covariance_SS)) / 6
    seeds = student_SN.mean(1).var(ddof=1) / 3
    half = math.sqrt(
        scipy.stats.t.isf(0.025, 2) ** 2 * seeds + scipy.stats.t.isf(0.025, 199) ** 2 * shared
    )
    assert gain.interval[1] - gain.value == pytest.approx(half, rel=0.03)


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_p_value_and_interval_agree(seeds):
    seen = set()
    generator = rng(8)
    for _ in range(30):
        study = simulated(
            generator, seeds=seeds, rows=60, seed_sd=0.1, lead=generator.uniform(0, 4)
        )
        for level in (0.7, 0.95):
            gain = paired_gain(share_right, *study, rng=generator, resamples=20, level=level)
            excludes = gain.interval[0] > 0 or gain.interval[1] < 0
            assert (gain.p_value < 1 - level) == excludes
            seen.add(excludes)
    assert seen == {True, False}


@pytest.mark.slow
@pytest.mark.parametrize("seed_sd", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("metric", [share_right, mean_value], ids=["accuracy", "mean"])
def test_false_positives_stay_rare(seed_sd, metric):
    generator = rng(9)
    studies = 200
    alarms = 0
    for _ in range(studies):
        study = simulated(generator, seeds=3, rows=150, seed_sd=seed_sd)
        gain = paired_gain(metric, *study, rng=generator, resamples=40)
        alarms += gain.p_value < 0.05
    assert alarms / studies <= 0.07


def test_a_row_test_alone_would_raise_false_alarms():
    # what seeds add: the same studies, judged by their first seed and the rows
    generator = rng(9)
    alarms = 0
    for _ in range(200):
        student_SN, baseline_SN, gold_N = simulated(generator, seeds=3, rows=150, seed_sd=1.0)
        pair = student_SN[:1], baseline_SN[:1]
        alarms += (
            paired_gain(share_right, *pair, gold_N, rng=generator, resamples=40).p_value < 0.05
        )
    assert alarms / 200 > 0.3


def test_a_clear_gain_is_found():
    generator = rng(10)
    helped = hurt = 0
    for _ in range(50):
        student_SN, baseline_SN, gold_N = simulated(
            generator, seeds=3, rows=400, seed_sd=0.05, lead=1.0
        )
        judge = partial(paired_gain, share_right, gold_N=gold_N, rng=generator, resamples=40)
        helped += verdict(judge(student_SN, baseline_SN), 0) == "helped"
        hurt += verdict(judge(baseline_SN, student_SN), 0) == "hurt"
    assert helped >= 45
    assert hurt >= 45


@pytest.mark.parametrize(
    "metric", [partial(macro_f1, classes=3), partial(matthews, classes=3)], ids=["f1", "matthews"]
)
def test_metrics_that_are_no_mean_over_rows(metric):
    generator = rng(11)
    gold_N = generator.integers(0, 3, 200)

    def recipe(skill):
        noise_SN = generator.integers(0, 3, (3, 200))
        return np.where(generator.random((3, 200)) < skill, gold_N, noise_SN)

    call = partial(paired_gain, metric, gold_N=gold_N, rng=generator, resamples=100)
    assert verdict(call(recipe(0.9), recipe(0.3)), 0) == "helped"
    assert verdict(call(recipe(0.6), recipe(0.6)), 0) == "can't tell"


def test_spearman_gain_agrees_with_the_spread_of_fresh_data():
    # one seed, many fresh test sets: the interval's half-width is 1.96 of their deviations
    def study(generator):
        gold_N, good_N, bad_N = generator.normal(size=(3, 150))
        return [gold_N + 0.7 * good_N], [gold_N + 1.2 * bad_N], gold_N

    fresh = []
    for seed in range(300):
        student, baseline, gold_N = study(rng(seed))
        fresh.append(spearman(student[0], gold_N) - spearman(baseline[0], gold_N))
    halves = []
    for seed in range(8):
        gain = paired_gain(spearman, *study(rng(seed)), rng=rng(), resamples=150)
        halves.append(gain.interval[1] - gain.value)
    assert np.mean(halves) == pytest.approx(1.96 * np.std(fresh), rel=0.15)


def test_a_difference_without_variance_is_not_certain():
    def gain(rows):
        sides = [np.ones(rows, int)], [np.zeros(rows, int)]
        return paired_gain(accuracy, *sides, np.ones(rows, int), rng=rng(), resamples=20)

    assert gain(4).p_value > 0.05  # four coin flips alike: 1/8
    assert verdict(gain(4), 0) == "can't tell"
    assert verdict(gain(20), 0) == "helped"


@pytest.mark.parametrize(("better", "worse"), [(4, 0), (5, 0), (9, 2), (12, 3), (30, 12)])
def test_few_differing_rows_are_judged_as_by_the_exact_test(better, worse):
    """With one seed: significant only where the exact McNemar test nearly is."""
    rows = 400
    student_N, baseline_N = np.ones(rows, int), np.ones(rows, int)
    baseline_N[:better], student_N[better : better + worse] = 0, 0
    gain = paired_gain(
        accuracy, [student_N], [baseline_N], np.ones(rows, int), rng=rng(), resamples=4000
    )
    exact = scipy.stats.binomtest(better, better + worse).pvalue
    assert gain.p_value == pytest.approx(exact, rel=0.5, abs=0.01)
    assert (gain.p_value < 0.05) == (exact < 0.05)


def test_an_interval_at_the_end_of_the_range_is_wilsons():
    right_N, gold_N = np.ones(60, int), np.ones(60, int)
    call = partial(bootstrap_interval, accuracy, gold_N=gold_N, rng=rng(), resamples=20)
    low, high = call([right_N], bounds=(0.0, 1.0))
    wilson = scipy.stats.binomtest(60, 60).proportion_ci(method="wilson")
    assert (low, high) == (pytest.approx(wilson.low, abs=0.005), 1.0)
    nearly_N = right_N.copy()
    nearly_N[0] = 0
    assert call([nearly_N], bounds=(0.0, 1.0))[0] < low, "an error more, yet surer"
    low, high = call([1 - right_N], bounds=(0.0, 1.0))
    assert (low, high) == (0.0, pytest.approx(1 - wilson.low, abs=0.005))


def test_an_overwhelming_gain_has_a_positive_p_value():
    sides = [np.ones(5000, int)], [np.zeros(5000, int)]
    gain = paired_gain(accuracy, *sides, np.ones(5000, int), rng=rng(), resamples=5)
    assert 0 < gain.p_value < 1e-50


def test_same_generator_same_answer():
    study = simulated(rng(12), seeds=2, rows=40, seed_sd=0.1)
    for function in (
        partial(paired_gain, accuracy, *study),
        partial(bootstrap_interval, accuracy, study[0], study[2]),
    ):
        assert function(rng=rng(1), resamples=20) == function(rng=rng(1), resamples=20)


@pytest.mark.parametrize(
    ("interval", "margin", "expected"),
    [
        ((0.1, 0.2), 0.0, "helped"),
        ((-0.2, -0.1), 0.0, "hurt"),
        ((-0.1, 0.1), 0.0, "can't tell"),
        ((0.0, 0.1), 0.0, "can't tell"),
        ((-0.1, 0.0), 0.0, "can't tell"),
        ((0.0, 0.0), 0.0, "no difference"),
        ((-0.01, 0.01), 0.01, "no difference"),
        ((0.001, 0.01), 0.01, "no difference"),  # it excludes 0, and is surely small
        ((-0.01, -0.001), 0.01, "no difference"),
        ((0.001, 0.011), 0.01, "helped"),
        ((-0.011, -0.001), 0.01, "hurt"),
        ((-0.001, 0.011), 0.01, "can't tell"),
        ((-0.011, 0.001), 0.01, "can't tell"),
        ((-0.241, 0.017), 0.01, "can't tell"),
    ],
)
def test_verdict(interval, margin, expected):
    assert verdict(PairedGain(0.0, interval, 0.5), margin) == expected


def test_a_margin_is_no_less_than_nothing():
    with pytest.raises(ValueError, match=r"must be >= 0, got -0\.1"):
        verdict(PairedGain(0.0, (0.0, 0.1), 0.5), -0.1)


def spread(**changes) -> Spread:
    values = {
        "value": 0.004, "seeds": 3, "rows": 400, "counted": 400,
        "row_variance": 9e-5, "shared_variance": 5e-5, "seed_variance": 6e-5,
    }  # fmt: skip
    return Spread(**values | changes)


def test_a_spread_is_what_the_gain_was_made_of():
    study = simulated(rng(4), seeds=3, rows=80, seed_sd=0.3, lead=0.5)
    gain = paired_gain(accuracy, *study, rng=rng(5), resamples=50)
    assert gain.spread.half_width(0.05) == pytest.approx(gain.interval[1] - gain.value)
    assert (gain.spread.value, gain.spread.seeds) == (gain.value, 3)
    assert (gain.spread.rows, gain.spread.counted) == (80, 80)


def test_more_seeds_and_more_rows_by_hand():
    # one seed's own noise on its rows is 3 (9e-5 - 5e-5) = 1.2e-4; six seeds halve its mean's
    six = spread().with_seeds(6)
    assert six.row_variance == pytest.approx(5e-5 + 1.2e-4 / 6)
    assert six.shared_variance == 5e-5
    assert six.seed_variance == pytest.approx(3e-5)
    # of the seeds' 6e-5, 4e-5 is noise on rows and falls with them; 2e-5 is the seeds' own
    more = spread().with_rows(800)
    assert (more.rows, more.counted) == (800, 800)
    assert more.row_variance == pytest.approx(4.5e-5)
    assert more.shared_variance == pytest.approx(2.5e-5)
    assert more.seed_variance == pytest.approx(2e-5 + 2e-5)
    same = spread().with_rows(400)
    assert same == spread()
    with pytest.raises(ValueError, match="one seed says nothing"):
        spread(seeds=1, shared_variance=None, seed_variance=0.0).with_seeds(2)


@pytest.mark.parametrize("margin", [0.0, 0.01])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"value": -0.02},
        {"value": 0.011, "seeds": 2},
        {"value": 0.0, "seeds": 5, "seed_variance": 1e-5},
        {"value": 0.03, "seeds": 2, "seed_variance": 4e-4},  # seeds alone are the noise
        {"value": 0.012, "counted": 0, "seed_variance": 1e-6, "shared_variance": 8e-5},
        {"value": 0.015, "seeds": 1, "shared_variance": None, "seed_variance": 0.0},
        {"value": 0.012, "shared_variance": -1e-6, "seed_variance": 2e-5},
    ],
)
def test_what_would_decide_is_the_smallest_number_that_does(changes, margin):
    """Against counting upwards; and what is proposed decides by the verdict itself."""
    found = spread(**changes)
    needed = what_would_decide(found, margin)

    def decided(changed: Spread) -> bool:
        half = changed.half_width(0.05)
        ends = (changed.value - half, changed.value + half)
        return verdict(PairedGain(changed.value, ends, 0.5), margin) != "can't tell"

    assert not decided(found)
    by_seeds = None
    if found.seeds > 1:
        more = range(1, 51 - found.seeds)
        by_seeds = next((n for n in more if decided(found.with_seeds(found.seeds + n))), None)
    by_rows = next((n for n in range(1, 60_000) if decided(found.with_rows(400 + n))), None)
    assert needed.seeds == by_seeds
    if by_rows is None:
        assert needed.rows is None or needed.rows >= 60_000
    else:
        assert needed.rows == by_rows


def test_some_noise_no_number_of_rows_or_seeds_takes_away():
    seeds_only = spread(value=0.03, seeds=2, seed_variance=4e-4, row_variance=6e-5)
    assert what_would_decide(seeds_only, 0.01).rows is None
    assert what_would_decide(seeds_only, 0.01).seeds > 0
    rows_only = spread(value=0.005, shared_variance=2e-4, row_variance=2e-4, seed_variance=1e-8)
    assert what_would_decide(rows_only, 0.0).seeds is None
    assert what_would_decide(rows_only, 0.0).rows > 0
    assert what_would_decide(spread(value=0.0), 0.0) == Needed(None, None)
    assert what_would_decide(spread(value=0.5), 0.0) == Needed(0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level": 1.0}, "level must be between 0 and 1, got 1.0"),
        ({"resamples": 1}, "resamples must be >= 2, got 1"),
        ({"student": []}, r"must have 4 predictions, got \[\]"),
        ({"student": [np.ones(4), np.ones(4)]}, "the same seeds, got 2 and 1"),
        ({"metric": lambda pred_N, gold_N: math.nan}, r"must be finite, got \[nan, nan\]"),
    ],
)
def test_what_paired_gain_refuses(change, message):
    arguments = {
        "metric": mean_value,
        "student": [np.ones(4)],
        "baseline": [np.ones(4)],
        "gold_N": np.ones(4),
        "rng": rng(),
    }
    with pytest.raises(ValueError, match=message):
        paired_gain(**(arguments | change))


def test_an_interval_needs_two_rows():
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        bootstrap_interval(mean_value, [np.ones(1)], np.ones(1), rng=rng())


# --- rows that belong together -----------------------------------------------------------------


def test_groups_of_one_row_change_nothing():
    gold_N = rng(1).integers(0, 2, 60)
    student, baseline = (rng(s).integers(0, 2, (2, 60)) for s in (2, 3))
    alone = np.arange(60)
    plain = bootstrap_interval(share_right, student, gold_N, rng=rng(), resamples=200)
    assert plain == bootstrap_interval(
        share_right, student, gold_N, rng=rng(), resamples=200, groups=alone
    )
    assert paired_gain(
        share_right, student, baseline, gold_N, rng=rng(), resamples=200
    ) == paired_gain(share_right, student, baseline, gold_N, rng=rng(), resamples=200, groups=alone)


@pytest.mark.parametrize("copies", [2, 10])
def test_copies_of_a_row_are_no_further_evidence(copies):
    """Ten tokens of a text that are all right or all wrong tell as much as one."""
    values_N = rng(1).normal(size=80)
    student, baseline = values_N + rng(2).normal(0.3, 1, 80), values_N
    wide, gold_N = partial(np.repeat, repeats=copies), np.zeros(80)
    groups = wide(np.arange(80))
    one = paired_gain(mean_value, [student], [baseline], gold_N, rng=rng(), resamples=4000)
    many = paired_gain(
        mean_value, [wide(student)], [wide(baseline)], wide(gold_N), rng=rng(), resamples=4000,
        groups=groups,
    )  # fmt: skip
    assert many.value == pytest.approx(one.value)
    assert many.interval == pytest.approx(one.interval, rel=1e-9)
    found = bootstrap_interval(mean_value, [wide(student)], wide(gold_N), rng=rng(), groups=groups)
    assert found == pytest.approx(bootstrap_interval(mean_value, [student], gold_N, rng=rng()))
    ungrouped = bootstrap_interval(mean_value, [wide(student)], wide(gold_N), rng=rng())
    assert ungrouped[1] - ungrouped[0] < 0.8 * (found[1] - found[0])


def test_rows_of_a_group_need_not_be_neighbours():
    values_N = rng(1).normal(size=50)
    order = rng(2).permutation(100)
    groups, twice = np.repeat(np.arange(50), 2), np.repeat(values_N, 2)
    near = bootstrap_interval(mean_value, [twice], np.zeros(100), rng=rng(), groups=groups)
    far = bootstrap_interval(
        mean_value, [twice[order]], np.zeros(100), rng=rng(), groups=groups[order]
    )
    assert far == pytest.approx(near)
    with pytest.raises(ValueError, match="each of 100 rows has a group, got 99"):
        bootstrap_interval(mean_value, [twice], np.zeros(100), rng=rng(), groups=groups[1:])
