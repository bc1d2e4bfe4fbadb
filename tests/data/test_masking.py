"""How many tokens are masked, which, and what stands in their place. Axes: B blocks, T tokens."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from stillhouse.data.masking import choose, corrupt

ORDINARY = np.arange(5, 60)
MASK = 4


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    "share, maskable, count",
    [(0.15, 1000, 150), (0.15, 7, 1), (0.15, 3, 1), (0.5, 7, 4), (1.0, 9, 9), (0.15, 0, 0)],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_exactly_the_share_of_the_whole_batch_is_chosen(
    share: float, maskable: int, count: int, weighted: bool
) -> None:
    for seed in range(20):
        flat = np.zeros(1200, dtype=bool)
        flat[rng(seed + 99).permutation(1200)[:maskable]] = True
        weights = rng(seed).random(1200) + 0.01 if weighted else None
        found = choose(
            flat.reshape(12, 100),
            share,
            rng(seed),
            weights_BT=None if weights is None else weights.reshape(12, 100),
        )
        assert len(found) == count
        assert (np.diff(found) > 0).all(), "rising, none twice"
        assert flat[found].all(), "nothing but what is maskable"


def test_the_choice_follows_from_the_generator_and_not_from_the_padding() -> None:
    maskable_BT = rng(1).random((8, 20)) < 0.7
    wide_BT = np.pad(maskable_BT, ((0, 0), (0, 12)))
    weights_BT = rng(2).random((8, 20)) + 0.1
    wide_weights_BT = np.pad(weights_BT, ((0, 0), (0, 12)), constant_values=1e9)
    for chosen, padded in (
        (choose(maskable_BT, 0.3, rng(3)), choose(wide_BT, 0.3, rng(3))),
        (
            choose(maskable_BT, 0.3, rng(3), weights_BT=weights_BT),
            choose(wide_BT, 0.3, rng(3), weights_BT=wide_weights_BT),
        ),
    ):
        assert (chosen // 20 == padded // 32).all()
        assert (chosen % 20 == padded % 32).all()
    assert (choose(maskable_BT, 0.3, rng(3)) == choose(maskable_BT, 0.3, rng(3))).all()
    assert (choose(maskable_BT, 0.3, rng(3)) != choose(maskable_BT, 0.3, rng(4))).any()


def test_without_weights_each_place_is_as_likely() -> None:
    maskable_BT = np.ones((4, 10), dtype=bool)
    draws, times = 4000, np.zeros(40)
    for seed in range(draws):
        times[choose(maskable_BT, 0.15, rng(seed))] += 1
    spread = math.sqrt(draws * 0.15 * 0.85)
    assert (abs(times - draws * 0.15) < 4.5 * spread).all()


def test_rare_tokens_are_likelier_as_their_count_to_the_power() -> None:
    """Three of 10 tokens are rare (count 10), the others frequent (1000): a draw of one takes a
    rare one with 3 r / (3 r + 7), where r = 100^0.7."""
    counts_BT = np.full((2, 5), 1000.0)
    rare = np.array([0, 4, 7])
    counts_BT.reshape(-1)[rare] = 10
    draws = 6000
    found = [
        choose(np.ones((2, 5), bool), 0.1, rng(seed), weights_BT=counts_BT**-0.7)[0]
        for seed in range(draws)
    ]
    ratio = 100**0.7
    expected = 3 * ratio / (3 * ratio + 7)
    measured = np.isin(found, rare).mean()
    assert abs(measured - expected) < 4 * math.sqrt(expected * (1 - expected) / draws)
    assert expected > 0.9 > 3 / 10


def test_draws_are_without_replacement_and_proportional_to_what_is_left() -> None:
    """Two of four: the probability of each pair, summed over both orders."""
    weights = np.array([1.0, 2.0, 3.0, 6.0])
    expected = {}
    for a, b in itertools.combinations(range(4), 2):
        both = weights[a] * weights[b] / weights.sum()
        expected[a, b] = both / (weights.sum() - weights[a]) + both / (weights.sum() - weights[b])
    assert sum(expected.values()) == pytest.approx(1)
    draws, seen = 8000, dict.fromkeys(expected, 0)
    for seed in range(draws):
        a, b = choose(np.ones((1, 4), bool), 0.5, rng(seed), weights_BT=weights[None])
        seen[int(a), int(b)] += 1
    for pair, probability in expected.items():
        spread = math.sqrt(draws * probability * (1 - probability))
        assert abs(seen[pair] - draws * probability) < 4 * spread, pair


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_weights_are_positive(weight: float) -> None:
    weights_BT = np.array([[1.0, weight, 1.0]])
    with pytest.raises(ValueError, match="weights must be > 0"):
        choose(np.ones((1, 3), bool), 0.5, rng(), weights_BT=weights_BT)
    hidden_BT = np.array([[True, False, True]])
    assert len(choose(hidden_BT, 0.5, rng(), weights_BT=weights_BT)) == 1, "elsewhere, no matter"


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, math.nan])
def test_a_share_is_between_0_and_1(share: float) -> None:
    with pytest.raises(ValueError, match=r"share must be in 0\.\.1"):
        choose(np.ones((1, 3), bool), share, rng())


def test_eight_tenths_are_masked_one_replaced_one_kept() -> None:
    ids_BT = np.full((100, 200), 7)
    places = np.arange(0, 20000, 2)
    seen_BT = corrupt(ids_BT, places, rng(), mask_id=MASK, ordinary=ORDINARY)
    assert (ids_BT == 7).all(), "a copy is corrupted"
    seen = seen_BT.reshape(-1)
    assert (seen[1::2] == 7).all(), "nothing but the chosen places changes"
    masked, kept = (seen[places] == MASK).mean(), (seen[places] == 7).mean()
    own = 1 / len(ORDINARY)  # a replacement may be the token itself
    for found, expected in ((masked, 0.8), (kept, 0.1 + 0.1 * own)):
        assert abs(found - expected) < 4 * math.sqrt(expected * (1 - expected) / len(places))
    replaced = seen[places][(seen[places] != MASK) & (seen[places] != 7)]
    assert set(replaced) <= set(ORDINARY)
    times = np.array([(replaced == i).sum() for i in ORDINARY if i != 7])
    expected = len(places) * 0.1 * own
    assert (abs(times - expected) < 5 * math.sqrt(expected)).all(), "each ordinary id as likely"


@pytest.mark.parametrize("mask, random", [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_the_ends_of_the_shares(mask: float, random: float) -> None:
    ids_BT = np.full((4, 50), 2)
    places = np.arange(200)
    seen_BT = corrupt(
        ids_BT, places, rng(), mask_id=MASK, ordinary=ORDINARY, mask=mask, random=random
    )
    allowed = {MASK} if mask else set(ORDINARY) if random else {2}
    assert set(seen_BT.reshape(-1)) <= allowed


def test_the_same_generator_gives_the_same_corruption() -> None:
    ids_BT, places = rng(5).integers(5, 60, (3, 40)), np.arange(0, 120, 3)

    def once(seed: int) -> np.ndarray:
        return corrupt(ids_BT, places, rng(seed), mask_id=MASK, ordinary=ORDINARY)

    assert (once(1) == once(1)).all()
    assert (once(1) != once(2)).any()
    none = corrupt(ids_BT, places[:0], rng(), mask_id=MASK, ordinary=ORDINARY)
    assert (none == ids_BT).all()
