"""The sweep of an audit: every budget of every line asked, a thief trained on each, seed by seed.

Axes: N rows or queries, K choices.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from stillhouse.core.progress import Progress
from stillhouse.core.seeding import generator
from stillhouse.core.types import Example
from stillhouse.data.sources import Part, Pool
from stillhouse.extract.answers import Answers
from stillhouse.extract.config import AuditConfig, Kind, Selection
from stillhouse.extract.ledger import Spent, cost_of
from stillhouse.extract.select import chosen
from stillhouse.extract.setup import Audit
from stillhouse.extract.thief import Thief
from stillhouse.extract.victim import Victim
from stillhouse.extract.views import View
from stillhouse.flows.stages import Trained
from stillhouse.tasks.base import Data


@dataclass(frozen=True)
class Line:
    """What the points of one curve have in common."""

    kind: Kind
    view: str
    thief: int
    selection: Selection

    @property
    def title(self) -> str:
        picked = "" if self.selection == "random" else f"{self.selection}-"
        return f"{self.kind}-{picked}{self.view.replace(':', '-')}-{self.thief}"


@dataclass(frozen=True)
class Cell:
    """One point of the sweep."""

    line: Line
    budget: float
    queries: int

    @property
    def title(self) -> str:
        return f"{self.line.title}-{self.budget:g}"


def lines(config: AuditConfig, views: Sequence[str]) -> list[Line]:
    """The first view and thief with every kind; others, and chosen queries, with the first, or
    (`cross`) each with each."""
    kinds = config.queries.kinds
    if config.cross:
        picked: tuple[Selection, ...] = ("random", *config.queries.choose)
        each = itertools.product(picked, range(len(config.thieves)), views, kinds)
        return [Line(kind, view, thief, how) for how, thief, view, kind in each]
    return [
        *(Line(kind, views[0], 0, "random") for kind in kinds),
        *(Line(kinds[0], view, 0, "random") for view in views[1:]),
        *(Line(kinds[0], views[0], n, "random") for n in range(1, len(config.thieves))),
        *(Line(kinds[0], views[0], 0, each) for each in config.queries.choose),
    ]


def cells(config: AuditConfig, views: Sequence[str], of: int) -> list[Cell]:
    """All points, line by line, budgets rising."""
    return [
        Cell(line, budget, max(1, round(budget * of)))
        for line in lines(config, views)
        for budget in config.queries.budgets
    ]


@dataclass
class Swept:
    """`spent`: what each seed's queries of a cell come to. `asked`: a few queries of each kind and
    their answers."""

    trained: dict[Cell, list[Trained]] = field(default_factory=dict)
    spent: dict[Cell, list[Spent]] = field(default_factory=dict)
    asked: dict[str, tuple[list[Example], Answers]] = field(default_factory=dict)


class Sweep:
    """What the lines of an audit share: the victim, the thieves, what was asked."""

    def __init__(
        self, made: Audit, victim: Victim, thieves: Sequence[Thief], views: Sequence[str],
        out: Path, progress: Progress,
    ) -> None:  # fmt: skip
        self.made, self.victim, self.thieves = made, victim, thieves
        self.views, self.out, self.progress = views, out, progress
        self.victim_s = 0.0
        self._streams: dict[tuple[Kind, int], tuple[Pool, Answers]] = {}
        self._reported: dict[int, Data] = {}

    def run(self) -> Swept:
        found = Swept()
        by_line: dict[Line, list[Cell]] = {}
        for cell in cells(self.made.config, self.views, self.made.of):
            by_line.setdefault(cell.line, []).append(cell)
        seeds = self.made.config.evaluation.seeds
        for kind in self.made.config.queries.kinds:  # the victim first, then all trainings
            streams = [self.stream(kind, seed) for seed in seeds]
            found.asked[kind] = _few(*streams[0])
        for line, points in by_line.items():
            for seed in seeds:
                self._curve(line, points, seed, found)
        return found

    def reported(self, thief: int) -> Data:
        """The reported rows as a thief reads them."""
        if thief not in self._reported:
            self._reported[thief] = self.thieves[thief].data(
                self.made.splits.reported, "reported rows"
            )
        return self._reported[thief]

    def answers(self, pool: Pool, of: str) -> Answers:
        """What the victim says, from what it said before where it can be."""
        started = time.perf_counter()
        found = self.victim.answers(pool, of, self.progress)
        self.victim_s += time.perf_counter() - started
        return found

    def stream(self, kind: Kind, seed: int) -> tuple[Pool, Answers]:
        """The most queries that any budget asks of a kind, and the answers."""
        seed = self._draw(seed)
        if (kind, seed) not in self._streams:
            pool = self.made.stream(kind, seed, self.made.most)
            answers = self.answers(pool, f"{kind} queries, seed {seed}")
            self._streams[kind, seed] = pool, answers
        return self._streams[kind, seed]

    def _curve(self, line: Line, points: Sequence[Cell], seed: int, found: Swept) -> None:
        """One seed's thieves of a line, budget by budget."""
        thief, config = self.thieves[line.thief], self.made.config
        before: Trained | None = None
        picked = np.arange(0)
        for cell in points:
            if line.selection == "random":
                pool, answers = self.stream(line.kind, seed)
                pool, answers = at(pool, np.arange(cell.queries)), answers.first(cell.queries)
            else:
                candidates = self.made.stream(line.kind, self._draw(seed), self.made.candidates)
                picked = self._picked(cell, seed, candidates, picked, before)
                pool = at(candidates, picked)
                answers = self.answers(pool, f"{cell.title}, seed {seed}")
            found.spent.setdefault(cell, []).append(cost_of(list(pool), config.tariff))
            shown = answers.seen(View.read(line.view))
            reported = self.reported(line.thief)
            before = thief.learn(cell.title, seed, pool, shown, reported, self.out)
            found.trained.setdefault(cell, []).append(before)

    def _picked(
        self, cell: Cell, seed: int, candidates: Pool, asked: np.ndarray, before: Trained | None
    ) -> np.ndarray:
        """What is asked by a budget: first the first candidates, then what the thief of the budget
        before it chooses."""
        if before is None:
            return np.arange(cell.queries)
        thief = self.thieves[cell.line.thief]
        rng = generator(seed, "select", cell.title)
        how = cell.line.selection
        with self.progress.stage(f"choosing queries, {cell.title}", 1, "rounds") as step:
            found = chosen(how, thief, before, candidates, asked, cell.queries, rng)
            step(1)
        return found

    def _draw(self, seed: int) -> int:
        """The seed that queries are drawn with."""
        made = self.made.config
        return seed if made.queries.fresh else made.evaluation.seeds[0]


def at(pool: Pool, positions: np.ndarray) -> Pool:
    """Some rows of a pool of one part, in the order of `positions`."""
    (part,) = pool.parts
    return Pool([Part(part.rows, part.indices[positions], part.labelled)])


def _few(pool: Pool, answers: Answers) -> tuple[list[Example], Answers]:
    few = pool.at(np.arange(min(len(pool), 5)))
    return few, answers.first(len(few))
