"""What copies come to: prices between budgets, and a verdict that says no more than was seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from stillhouse.core.audit_results import Change, Copy, VictimResult
from stillhouse.core.results import Gain
from stillhouse.core.settings import parse
from stillhouse.core.types import Predictions
from stillhouse.extract import record
from stillhouse.extract.audit import Audited
from stillhouse.extract.config import AuditConfig
from stillhouse.extract.prices import Tariff, Tier
from stillhouse.extract.record import change_of, price_of, sentence
from stillhouse.extract.setup import Audit
from stillhouse.extract.sweep import Cell, Line, Sweep
from stillhouse.tasks.classification import Classification

TIERS = Tariff(free=5_000, tiers=(Tier(per_thousand=10), Tier(above=10_000, per_thousand=0.1)))
VICTIM = VictimResult(name="victim", score=0.9, interval=(0.88, 0.92))


def copy(queries: int, score: float, **changes: Any) -> Copy:
    values: dict[str, Any] = {
        "kind": "wiki", "selection": "random", "view": "probabilities", "thief": "model",
        "budget": queries / 1000, "queries": queries, "characters": 0, "units": queries,
        "money": TIERS.price(queries), "score": score, "interval": (score, score),
        "seeds": [score], "agreement": 0.9, "agreement_interval": (0.9, 0.9),
        "retention": score / 0.9,
    }  # fmt: skip
    return Copy(**values | changes)


def test_a_price_between_budgets_is_the_price_lists_own() -> None:
    rising = [copy(1_000, 0.5), copy(100_000, 0.9)]
    price, at_most = price_of(rising, 0.7, TIERS)
    assert price == pytest.approx(TIERS.price(10_000))
    assert not at_most
    assert price_of(rising, 0.51, TIERS)[0] == 0.0  # 1,122 queries are free
    assert price_of(rising, 0.4, TIERS) == (0.0, True)
    assert price_of(rising, 0.95, TIERS) == (None, False)
    assert price_of([copy(10, 0.6), copy(100, 0.4), copy(20_000, 0.8)], 0.8, TIERS) == (
        TIERS.price(20_000), False,
    )  # fmt: skip


def change(view: str, price: float | None, **more: Any) -> Change:
    if view == "probabilities":
        return Change(view=view, gain=None, price=price, **more)
    gain = Gain(value=-0.01, interval=(-0.02, 0.0), p_value=0.1, seeds=more.pop("seeds", 3))
    return Change(view=view, gain=gain, price=price, **{"verdict": "can't tell", **more})


def told(*changes: Change, copies: Sequence[Copy] = (copy(1_000, 0.89),), **more: Any) -> str:
    return sentence(copies, changes, VICTIM, more.get("metric", "accuracy"), "$", 0.95)


def test_what_chance_may_have_made_dearer_is_not_called_dearer() -> None:
    said = told(change("probabilities", 1.0), change("label", None))
    assert "No change of what is shown is seen to make a good copy dearer" in said
    said = told(change("probabilities", 1.0), change("label", None, dearer=True),
                change("top:1", 5.0, dearer=True))  # fmt: skip
    assert "Of wiki queries' good copies, showing label raises the price most: $1.00 before, then "\
           "none within these budgets." in said  # fmt: skip
    said = told(change("probabilities", 1.0), change("label", 5.0, dearer=True, seeds=1))
    assert said.endswith("$1.00 before, then $5.00, these two models only.")


@pytest.mark.parametrize(
    ("verdict", "seeds", "says"),
    [
        ("hurt", 3, "by -1.0 points (-2.0 to +0.0): the copy is worse."),
        ("hurt", 1, "by -1.0 points (-2.0 to +0.0): the copy is worse, these two models only."),
        ("can't tell", 3, "by -1.0 points (-2.0 to +0.0): can't tell."),
    ],
)
def test_what_hiding_does_is_said_with_its_seeds(verdict: str, seeds: int, says: str) -> None:
    other = change("label", None, verdict=verdict, seeds=seeds)
    assert says in told(change("probabilities", None), other)


def test_the_smallest_budget_is_a_bound_not_a_price() -> None:
    changes = [change(v, 0.0, at_most=True) for v in ("probabilities", "label")]
    assert "try smaller ones" in told(*changes)
    said = told(change("probabilities", 0.0, at_most=True), change("label", 3.0, dearer=True))
    assert "at most $0.00 before, then $3.00" in said


def test_the_cheapest_good_copy_is_told_or_the_best() -> None:
    copies = [copy(1_000, 0.80), copy(7_000, 0.88), copy(20_000, 0.91), copy(50_000, 0.89)]
    said = told(change("probabilities", 20.0), copies=copies)
    assert said.startswith("For $20.00 (7,000 wiki queries) a stranger gets 98% of this model's "
                           "accuracy (0.880 of 0.900), and agrees with it on 90%.")  # fmt: skip
    said = told(change("probabilities", None), copies=copies[:1])
    assert "no copy has 95%" in said
    assert "dearer" not in said
    valued = [copy(1_000, 0.89, view="value")]
    said = told(Change(view="value", gain=None, price=1.0), copies=valued, metric="pearson")
    assert "correlates with it by 0.90" in said


def test_a_copy_that_answers_all_alike_is_not_called_good() -> None:
    victim = VictimResult(name="v", score=0.55, interval=(0.5, 0.6), constant=0.54)
    copies = [copy(1_000, 0.54, retention=0.54 / 0.55)]
    said = sentence(copies, [change("probabilities", None)], victim, "accuracy", "$", 0.95)
    assert "no more than one answer to all rows scores (0.540)" in said
    worse = VictimResult(name="v", score=-0.13, interval=(-0.2, 0.0))
    copies = [copy(1_000, -0.25, retention=None)]
    said = sentence(copies, [change("probabilities", None)], worse, "pearson", "$", 0.95)
    assert "a stranger gets this model's pearson (-0.250 of -0.130)" in said
    assert "%" not in said


@pytest.mark.parametrize(("right", "dearer"), [(0.45, True), (0.84, False), (0.9, False)])
def test_dearer_is_worse_by_more_than_chance_where_the_first_is_good(
    right: float, dearer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first view's copy is good (0.86 of 0.9) from its second budget on; the other's has as
    many queries and scores `right`."""
    rows = 200
    gold_N = np.zeros(rows, np.int64)
    lines = {view: Line("wiki", view, 0, "random") for view in ("probabilities", "label")}
    scores = {"probabilities": (0.6, 0.86), "label": (0.5, right)}
    cells = {Cell(line, budget, round(100 * budget)): score for view, line in lines.items()
             for budget, score in zip((1.0, 2.0), scores[view], strict=True)}  # fmt: skip

    def answers(found: object, cell: Cell) -> list[np.ndarray]:
        right_N = np.arange(rows) < round(cells[cell] * rows)
        shift = 50 * (cell.line.view == "label")  # other rows are wrong
        return [np.where(np.roll(right_N, shift + 7 * seed), 0, 1) for seed in range(2)]

    monkeypatch.setattr(record, "answers_of", answers)
    found, made, sweep = (object.__new__(kind) for kind in (Audited, Audit, Sweep))
    made.config = parse(AuditConfig, {
        "victim": "v", "data": {"path": "d"}, "thieves": [{"model": "m"}],
        "evaluation": {"resamples": 200}, "queries": {"kinds": ["wiki"]},
    })  # fmt: skip
    sweep.views = ["probabilities", "label"]
    found.made, found.sweep, found.task = made, sweep, Classification(["a", "b"])
    found.victim = Predictions(gold_N, None, gold_N)
    copies = {cell: copy(cell.queries, score, view=cell.line.view)
              for cell, score in cells.items()}  # fmt: skip
    first, other = (change_of(found, view, copies, 0.855) for view in sweep.views)
    assert (first.gain, first.dearer) == (None, False)
    assert first.price is not None
    assert other.gain is not None
    assert other.gain.value == pytest.approx(right - 0.86, abs=0.01)
    assert other.dearer == dearer
