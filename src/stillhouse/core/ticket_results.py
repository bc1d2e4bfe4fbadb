"""What a search for tickets found, as it stands in record.json: frozen, readable without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stillhouse.core.results import SCHEMA, DataSummary, Gain, Interval, Result, Verdict

Kind = Literal["dense", "ticket", "random", "reinitialised"]


class Level(Result):
    """One kind of model at one round, over seeds. `remaining`: share of the prunable weights.
    `early_steps`: where each seed's held-out loss was least, and `early_losses` what it was.
    `gain`: minus the dense model, paired by row and seed; `verdict`: what that amounts to."""

    kind: Kind
    round: int
    remaining: float
    kept: int
    score: float
    interval: Interval
    seeds: list[float]
    metrics: dict[str, float]
    early_steps: list[int] = Field(default_factory=list)
    early_losses: list[float] = Field(default_factory=list)
    gain: Gain | None = None
    verdict: Verdict | None = None


class Overlap(Result):
    """Jaccard of two seeds' tickets of a round, mean over pairs; `expected` of random masks."""

    round: int
    found: float
    expected: float


class Storage(Result):
    """Bytes of the last ticket on disk: as any model is saved, and with masked weights left out.
    It takes as long to run as the dense one does."""

    dense: int
    sparse: int


class TicketTiming(Result):
    total_s: float
    steps: int


class TicketsRecord(Result):
    """A search's result. Stable: new fields may come, these stay."""

    version: Literal[2] = Field(default=SCHEMA, alias="schema")
    flow: Literal["tickets"] = "tickets"
    task: str
    metric: str
    data: DataSummary
    model: str
    parameters: int
    prunable: int
    score_name: str
    rewind: int | Literal["none"]
    levels: list[Level]
    densities: dict[str, list[float]]
    overlaps: list[Overlap]
    storage: Storage
    shipped_seed: int
    sentence: str
    timing: TicketTiming
    warnings: list[str] = Field(default_factory=list)


class Cell(Result):
    """The ticket of `source` on the task of `target`. `remaining`: of the weights that the target
    prunes; `gain`: minus the target's own ticket; `verdict`: what that amounts to."""

    source: str
    target: str
    remaining: float
    score: float
    interval: Interval
    seeds: list[float]
    gain: Gain | None = None
    verdict: Verdict | None = None


class TransferRecord(Result):
    version: Literal[2] = Field(default=SCHEMA, alias="schema")
    flow: Literal["transfer"] = "transfer"
    names: list[str]
    metrics: list[str]
    remaining: list[float]
    dense: list[float]
    cells: list[Cell]
    overlaps: list[list[float]]
    sentence: str
    timing: TicketTiming
    warnings: list[str] = Field(default_factory=list)
