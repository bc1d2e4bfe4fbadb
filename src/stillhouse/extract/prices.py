"""What answers cost: units of characters, free ones, tiers, accounts.

Axes: N queries.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated

from pydantic import Field, model_validator

from stillhouse.core.terms import Config, Positive


class Tier(Config):
    """From how many units on (free ones too, an account) a thousand units cost so much."""

    above: Annotated[int, Field(ge=0)] = 0
    per_thousand: Annotated[float, Field(ge=0)]


class Tariff(Config):
    """A price list. A query is as many units as `characters` go into it (0: one, whatever its
    length), rounded up; each of `accounts` has its own free units and tiers.

    The default is what Krishna et al. 2020 reckon with: a query is a unit, 5,000 are free, and a
    thousand more cost a dollar.
    """

    characters: Annotated[int, Field(ge=0)] = 0
    free: Annotated[int, Field(ge=0)] = 5_000
    tiers: Annotated[tuple[Tier, ...], Field(min_length=1)] = (Tier(per_thousand=1.0),)
    accounts: Positive = 1
    currency: str = "$"

    @model_validator(mode="after")
    def _rising(self) -> Tariff:
        starts = [tier.above for tier in self.tiers]
        if starts[0] != 0 or sorted(set(starts)) != starts:
            raise ValueError("tiers begin at above=0 and rise")
        return self

    def units(self, text: str, pair: str | None = None) -> int:
        """The units of one query."""
        if not self.characters:
            return 1
        return max(1, math.ceil((len(text) + len(pair or "")) / self.characters))

    def price(self, units: int) -> float:
        """What so many units cost, spread evenly over the accounts."""
        share, more = divmod(units, self.accounts)
        return more * self._of_one(share + 1) + (self.accounts - more) * self._of_one(share)

    def price_of(self, queries: Iterable[tuple[str, str | None]]) -> float:
        """What these queries cost."""
        return self.price(sum(self.units(text, pair) for text, pair in queries))

    def affordable(self, money: float) -> int:
        """The most units that cost no more than `money`."""
        low, high = 0, 1
        while self.price(high) <= money:
            low, high = high, 2 * high
            if high > 1 << 62:
                return low
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.price(middle) <= money else (low, middle)
        return low

    def _of_one(self, units: int) -> float:
        """What one account pays: the units after the free ones, each at its tier's price."""
        total = 0.0
        ends = [tier.above for tier in self.tiers[1:]] + [max(units, self.free)]
        for tier, end in zip(self.tiers, ends, strict=True):
            begin = max(tier.above, self.free)
            total += max(0, min(units, end) - begin) * tier.per_thousand / 1000
        return total
