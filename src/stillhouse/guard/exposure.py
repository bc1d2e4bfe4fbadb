"""How much of a measured extraction curve a client has already asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stillhouse.core.audit_results import AuditRecord
from stillhouse.core.errors import UsageError


@dataclass(frozen=True)
class Curve:
    """What copies score, as shares of the model's own score, after so many queries; the best kind
    of queries counts at each budget."""

    queries: tuple[int, ...]
    shares: tuple[float, ...]

    @classmethod
    def of(cls, record: AuditRecord) -> Curve:
        """Of an audit: the best copy at each budget, of any view. Raises UsageError where the
        victim is no better than one answer to all."""
        best: dict[int, float] = {}
        for copy in record.copies:
            if copy.retention is not None:
                best[copy.queries] = max(best.get(copy.queries, 0.0), copy.retention)
        if not best:
            raise UsageError("the audit's copies have no share of the victim's score: no curve")
        budgets = sorted(best)
        shares = np.maximum.accumulate([best[each] for each in budgets])
        return cls(tuple(budgets), tuple(float(share) for share in shares))

    def share(self, asked: int) -> float:
        """What a copy from so many queries would have of the model's score: between budgets by the
        logarithm of the queries, beyond the last its own, below the first in proportion."""
        if asked <= 0:
            return 0.0
        if asked < self.queries[0]:
            return self.shares[0] * asked / self.queries[0]
        return float(np.interp(np.log(asked), np.log(self.queries), self.shares))

    def used(self, asked: int) -> float:
        """The share of the queries of the largest budget."""
        return min(1.0, asked / self.queries[-1])

    def as_json(self) -> dict[str, Sequence[float]]:
        return {"queries": self.queries, "shares": self.shares}
