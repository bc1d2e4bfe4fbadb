"""Randomness depends on its purpose and on nothing that ran before."""

from __future__ import annotations

from stillhouse.core.errors import unknown
from stillhouse.core.seeding import derive, generator


def test_the_same_purpose_draws_the_same_numbers() -> None:
    generator(0, "dropout", 1, 0).random(7)
    assert (generator(0, "order", 3).random(5) == generator(0, "order", 3).random(5)).all()


def test_purposes_seeds_and_positions_are_told_apart() -> None:
    seeds = {derive(s, p, i) for s in range(20) for p in ("order", "dropout") for i in range(20)}
    assert len(seeds) == 800
    assert derive(1, "a", 11) != derive(11, "a", 1) != derive(1, "a1", 1)
    assert all(0 <= s < 2**63 for s in seeds)


def test_unknown_suggests_only_what_is_near() -> None:
    assert unknown("loss", "fowrard_kl", ["forward_kl", "jsd"]) == (
        "unknown loss 'fowrard_kl': did you mean 'forward_kl'? (known: forward_kl, jsd)"
    )
    assert "did you mean" not in unknown("loss", "xyz", ["forward_kl"])
