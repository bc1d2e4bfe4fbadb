"""What an audit found, as it stands in record.json: frozen, readable without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stillhouse.core.results import SCHEMA, DataSummary, Gain, Interval, Result, Verdict


class Copy(Result):
    """Thieves of one kind, over seeds: what they were given, what that cost, how good they are.
    `score`: on the reported rows; `agreement`: the share of these answered as the victim does
    (regression: the correlation with its values); `retention`: of the victim's score (None: that
    is not above 0)."""

    kind: str
    selection: str
    view: str
    thief: str
    budget: float
    queries: int
    characters: int
    units: int
    money: float
    score: float
    interval: Interval
    seeds: list[float]
    agreement: float
    agreement_interval: Interval
    retention: float | None


class Change(Result):
    """One change to the API, beside the first view. `gain`: the copies' score at the largest
    budget, minus that under the first view, paired by row and seed, and its `verdict`; `price`:
    what a copy that is good enough costs (None: none is), or no more than that (`at_most`: the
    smallest budget gives it); `dearer`: this view hurt the copy of as many queries as the first
    view's cheapest good one."""

    view: str
    gain: Gain | None
    verdict: Verdict | None = None
    price: float | None
    at_most: bool = False
    dearer: bool = False


class Asked(Result):
    """A query and what the victim answered."""

    kind: str
    text: str
    pair: str | None = None
    answer: str


class Leak(Result):
    """What the API gives away without any thief, or doesn't."""

    name: str
    leaks: bool
    finding: str


class VictimResult(Result):
    """`constant`: what the best single answer to all rows scores."""

    name: str
    score: float
    interval: Interval
    constant: float = 0.0
    charged: int | None = None  # queries that an API was ever sent, by all audits of it


class AuditTiming(Result):
    total_s: float
    victim_s: float
    thieves_s: float


class AuditRecord(Result):
    """An audit's result. Stable: new fields may come, these stay."""

    version: Literal[2] = Field(default=SCHEMA, alias="schema")
    flow: Literal["audit"] = "audit"
    task: str
    metric: str
    currency: str
    enough: float
    data: DataSummary
    victim: VictimResult
    copies: list[Copy]
    changes: list[Change]
    leaks: list[Leak] = Field(default_factory=list)
    asked: list[Asked]
    sentence: str
    timing: AuditTiming
    warnings: list[str] = Field(default_factory=list)
