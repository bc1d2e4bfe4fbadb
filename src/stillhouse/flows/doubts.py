"""What a record says of a model that is weak, in words: a warning line each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stillhouse.core.results import FloorResult, ModelResult
from stillhouse.core.units import amount, better, counted, spoken

NAMED = 10  # classes of a warning


def below_floor(
    who: str, model: ModelResult, floor: FloorResult | None, metric: str, *, margin: float
) -> list[str]:
    """A warning where a bag of words scores higher than a model; `margin`: the largest difference
    that counts as none, in the metric's values."""
    if floor is None or not better(floor.score, model.score, metric):
        return []
    said = f"a bag of words ({floor.name}, {floor.seconds:.1f} s) scores {floor.score:.3f}"
    if abs(floor.score - model.score) <= margin:
        return [f"{said}, and {who} {model.score:.3f}: no better, so the bag of words may do"]
    more = amount(floor.score - model.score, metric)
    return [
        f"{said}, {more} more than {who} ({model.score:.3f}): train {who} longer or with a larger "
        "rate (training.epochs, training.lr), give more labelled rows, or take the bag of words"
    ]


def no_nearer(who: str, model: ModelResult, metric: str) -> list[str]:
    """A warning where a model's values are no nearer to the gold ones than their mean is, which a
    correlation doesn't tell."""
    explained = model.metrics.get("r_squared")
    if explained is None or explained > 0:
        return []
    return [
        f"the values of {who} are no nearer to the gold ones than their mean is (R² "
        f"{explained:.2f}): {spoken(metric)} {model.score:.3f} is of their order only; train {who} "
        "longer or with a larger rate"
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


def what_helps(missed: Sequence[str], counts: Mapping[str, int], *, weighed: bool) -> str:
    """What helps classes that are never answered, beyond more of their rows: weights, where one has
    less than half the training rows of an average class and they are not `weighed` yet; or time."""
    average = sum(counts.values()) / max(len(counts), 1)
    if not weighed and any(counts.get(name, 0) < average / 2 for name in missed):
        return "weigh rare classes (--set training.class_weights=balanced)"
    return "train it longer"
