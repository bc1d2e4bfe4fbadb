"""Prices as published, and as tiers, accounts and free units make them."""

from __future__ import annotations

import pytest

from stillhouse.core.errors import UsageError
from stillhouse.core.settings import parse
from stillhouse.extract.prices import Tariff, Tier


@pytest.mark.parametrize(
    ("queries", "dollars"), [(67_349, 62.35), (392_702, 387.70), (87_599, 82.60), (9_427, 4.43)]
)
def test_the_published_estimates(queries: int, dollars: float) -> None:
    assert round(Tariff().price(queries), 2) == dollars


def test_units_are_rounded_up() -> None:
    tariff = Tariff(characters=1000)
    assert [tariff.units("x" * n) for n in (0, 1, 1000, 1001)] == [1, 1, 1, 2]
    assert tariff.units("x" * 600, "y" * 600) == 2
    assert Tariff().units("x" * 9999) == 1


def test_tiers_accounts_and_what_is_free() -> None:
    tariff = Tariff(free=1000, tiers=(Tier(per_thousand=2), Tier(above=5000, per_thousand=1)))
    assert [tariff.price(n) for n in (0, 1000, 2000, 5000, 7000)] == [0, 0, 2, 8, 10]
    two = tariff.model_copy(update={"accounts": 2})
    assert two.price(4000) == 4.0
    assert two.price(4001) == pytest.approx(4.002)
    free = Tariff(free=9000, tiers=(Tier(per_thousand=2), Tier(above=5000, per_thousand=1)))
    assert free.price(10_000) == 1.0


@pytest.mark.parametrize("money", [0.0, 0.5, 62.35, 1000.0])
def test_what_money_buys(money: float) -> None:
    tariff = Tariff(tiers=(Tier(per_thousand=1), Tier(above=20_000, per_thousand=0.5)), accounts=3)
    units = tariff.affordable(money)
    assert tariff.price(units) <= money < tariff.price(units + 1)


def test_a_price_list_out_of_order_is_refused() -> None:
    for tiers in ([{"above": 5, "per_thousand": 1}],
                  [{"per_thousand": 1}, {"per_thousand": 2}]):  # fmt: skip
        with pytest.raises(UsageError, match="tiers begin at above=0 and rise"):
            parse(Tariff, {"tiers": tiers})
