"""The table of labels: how good the model is on each."""

from __future__ import annotations

from dataclasses import dataclass

from stillhouse.core.results import ModelResult
from stillhouse.report import format as fmt


@dataclass(frozen=True)
class ClassRow:
    """One label of the table of labels. `silent`: it is never answered."""

    label: str
    rows: str
    precision: str
    recall: str
    f1: str
    confused: str
    silent: bool


def class_rows(model: ModelResult) -> list[ClassRow]:
    """The labels, worst F1 first; one without rows or answers at the end."""

    def share(value: float | None) -> str:
        return fmt.DASH if value is None else fmt.score(value)

    known = sorted(model.classes, key=lambda each: 2.0 if each.f1 is None else each.f1)
    return [
        ClassRow(
            label=each.label,
            rows=fmt.count(each.rows),
            precision=share(each.precision),
            recall=share(each.recall),
            f1=share(each.f1),
            confused=f"{each.confused_with} ({fmt.count(each.confused_rows)})"
            if each.confused_with is not None
            else fmt.DASH,
            silent=each.label in model.never_predicted,
        )
        for each in known
    ]


def class_note(model: ModelResult) -> str:
    """Which labels are never answered, and over which macro F1 is a mean."""
    silent = model.never_predicted
    counted = sum(each.f1 is not None for each in model.classes)
    found = []
    if silent:
        found.append(f"Never answered: {', '.join(silent)}.")
    over = f"Macro F1 is the mean over the {counted} labels that are gold or answered in some row"
    left = len(model.classes) - counted
    found.append(f"{over}; {left} that are neither are left out." if left else f"{over}: all.")
    return " ".join(found)
