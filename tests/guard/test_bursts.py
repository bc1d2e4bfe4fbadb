"""How long bursts are, learned from honest clients' questions."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
import sqlalchemy as sa

from stillhouse.core.errors import DataError, UsageError
from stillhouse.guard.bursts import _likelihoods, asked, bursts_of, measured, soonest
from stillhouse.guard.registry import Registry
from stillhouse.guard.settings import Odds
from stillhouse.guard.simulated import bursty, independent
from stillhouse.guard.tables import queries

ODDS = Odds()


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def of(odd_CN: np.ndarray) -> tuple[float, float | None]:
    found = measured({str(number): odd_N for number, odd_N in enumerate(odd_CN)}, ODDS)
    return found.length, found.bound


def test_the_likelihood_is_the_sum_over_all_ways_through_the_chain() -> None:
    odd, (length, inside, alone), share = [1, 0, 1, 1, 0], (4.0, 0.5, 0.3), 0.1
    inside_rate, calm = share + (1 - share) * inside, alone * share
    of_burst = (share - calm) / (inside_rate - calm)
    ends, begins = 1 / length, of_burst / (1 - of_burst) / length
    whole = 0.0
    for path in product((0, 1), repeat=len(odd)):
        chance = of_burst if path[0] else 1 - of_burst
        for now, then in pairwise(path):
            stays = (1 - begins, begins), (ends, 1 - ends)
            chance *= stays[now][then]
        for state, each in zip(path, odd, strict=True):
            rate = inside_rate if state else calm
            chance *= rate if each else 1 - rate
        whole += chance
    grid = np.array([[length, inside, alone]])
    found = _likelihoods(np.array(odd, dtype=bool), share, grid)
    assert found[0] == pytest.approx(np.log(whole))


def test_bursts_that_leave_no_room_for_calm_can_not_be() -> None:
    grid = np.array([[2.0, 0.3, 0.0], [50.0, 0.3, 0.0]])
    found = _likelihoods(np.array([True, False]), 0.8, grid)
    assert found[0] == -np.inf
    assert np.isfinite(found[1])


@pytest.mark.parametrize(
    ("length", "inside", "count"), [(5, 1.0, 5_000), (20, 1.0, 15_000), (50, 0.5, 15_000)]
)
def test_the_bound_holds_what_is_so(length: float, inside: float, count: int) -> None:
    """In all of ten but one at most, and it is no empty one; gaps in a burst don't end it."""
    found = [of(odd_N[None]) for odd_N in bursty(rng(), (10, count), 0.05, length, inside=inside)]
    bounds = [np.inf if bound is None else bound for _, bound in found]
    assert sum(bound >= length for bound in bounds) >= 9
    assert np.median(bounds) <= 3 * length
    assert length / 2 <= np.median([each for each, _ in found]) <= 2 * length


def test_odd_ones_alone_among_bursts_make_these_no_shorter() -> None:
    """As the mean run of odd questions would be: most runs are one long."""
    both = independent(rng(), (1, 20_000), 0.03) | bursty(rng(), (1, 20_000), 0.03, 50)
    length, bound = of(both)
    assert 25 <= length <= 100
    assert bound is not None
    assert bound >= 50


def test_independent_questions_have_no_bursts() -> None:
    length, bound = of(independent(rng(), (1, 40_000), 0.05))
    assert length == 1
    assert bound is not None
    assert bound <= 5


def test_many_clients_are_taken_together_each_at_its_own_share() -> None:
    """Two who differ are not taken for one with bursts."""
    one, other = independent(rng(), (2, 10_000), np.array([[0.01], [0.09]]))
    assert of(np.stack([one, other]))[0] == 1
    assert of(np.concatenate([one, other])[None])[0] > 1


def test_what_is_told_of_too_little() -> None:
    with pytest.raises(DataError, match="1,000 and more are needed"):
        of(np.zeros((1, 999), dtype=bool))
    found = measured({"ann": independent(rng(), (1, 1500), 0.02)[0]}, ODDS)
    assert found.bound is None
    assert "too short to tell" in " ".join(found.advice(ODDS))
    found = measured({"ann": bursty(rng(), (1, 40_000), 0.1, 1500)[0]}, ODDS)
    assert found.bound is None
    assert "longer than 1,000" in " ".join(found.advice(ODDS))


def test_the_advice() -> None:
    honest = bursty(rng(), (1, 20_000), 0.05, 5)[0]
    heavy = independent(rng(), (1, 3_000), 0.3)[0]
    found = measured({"ann": honest, "bob": heavy}, ODDS)
    assert found.flagged == ("bob",)
    assert found.worst is not None
    assert found.worst[0] == "bob"
    enough = " ".join(found.advice(ODDS))
    assert "(50) is enough" in enough
    assert "of bob's questions" in enough
    assert "guard.check.tolerance (0.1)" in enough
    assert "would have flagged: bob" in enough
    single = measured({"ann": honest}, Odds(burst=1))
    assert single.flagged == ("ann",)
    told = " ".join(single.advice(Odds(burst=1)))
    assert "(1) is too little" in told
    assert f"{soonest(Odds(burst=1))} at 1" in told
    assert "WARNING" not in told


def test_how_soon_a_thief_is_found() -> None:
    assert soonest(Odds(burst=1)) in {f"after {n} questions" for n in range(4, 12)}
    assert soonest(Odds(burst=1, tolerance=0.9)) == "after more than 240"


def test_the_log_is_read_in_order_each_question_once(registry: Registry) -> None:
    ann, bob = (registry.create_client(name)[0] for name in ("ann", "bob"))

    def line(client: str, query: int, at: float, odd: bool | None) -> dict[str, object]:
        return {"time": at, "client": client, "query": query.to_bytes(16, "big"), "model": "m",
                "units": 1, "odd": odd, "text": None, "pair": None}  # fmt: skip

    with registry.writing() as connection:
        connection.execute(
            sa.insert(queries),
            [
                line(ann.id, 3, 9.0, True), line(ann.id, 1, 2.0, True), line(ann.id, 2, 3.0, None),
                line(ann.id, 4, 4.0, False), line(ann.id, 1, 5.0, False),
                line(bob.id, 5, 1.0, True),
            ],
        )  # fmt: skip
        connection.execute(
            sa.insert(queries), [line(bob.id, 10 + n, 10.0 + n, n % 30 == 0) for n in range(1500)]
        )
    assert asked(registry, ann.id).tolist() == [True, False, True]
    assert bursts_of(registry, ["bob"], ODDS).questions == 1501
    assert bursts_of(registry, [], ODDS).questions == 1504
    registry.flag("ann", "by hand")
    assert bursts_of(registry, [], ODDS).questions == 1501
    with pytest.raises(UsageError, match="no client 'carl'"):
        bursts_of(registry, ["carl"], ODDS)
