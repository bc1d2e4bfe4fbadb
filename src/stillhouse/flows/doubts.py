"""What a record says of a model that is weak, in words: a warning line each."""

from __future__ import annotations

from collections.abc import Sequence

from stillhouse.core.results import FloorResult, ModelResult
from stillhouse.core.units import counted, points, unit

NAMED = 10  # classes of a warning


def below_floor(who: str, model: ModelResult, floor: FloorResult | None, metric: str) -> list[str]:
    """A warning where a bag of words scores higher than a model."""
    if floor is None or not model.score < floor.score:
        return []
    more = points(floor.score - model.score, metric).lstrip("+")
    return [
        f"a bag of words ({floor.name}, {floor.seconds:.1f} s) scores {floor.score:.3f}, {more} "
        f"{unit(metric)} more than {who} ({model.score:.3f}): train {who} longer or with a larger "
        "rate (training.epochs, training.lr), give more labelled rows, or take the bag of words"
    ]


def beside(floor: FloorResult | None) -> str:
    """The end of a sentence that gives a model's score."""
    return "" if floor is None else f"; a bag of words ({floor.name}) scores {floor.score:.3f}"


def classes_missed(
    who: str, model: ModelResult, choices: Sequence[str], *, advice: str = "train it longer"
) -> list[str]:
    """A warning that names the classes a model never answers, with how many rows have them."""
    missed = model.never_predicted
    if not missed:
        return []
    rows = {name: sum(counts) for name, counts in zip(choices, model.confusion or [], strict=False)}
    named = ", ".join(f"{name} ({counted(rows[name], 'row')})" for name in missed[:NAMED])
    more = f" and {len(missed) - NAMED} more" if len(missed) > NAMED else ""
    there = sum(count > 0 for count in rows.values())
    return [
        f"{who} never answers {len(missed)} of the {there} classes that the reported rows have: "
        f"{named}{more}; {advice}, or give more rows of these"
    ]
