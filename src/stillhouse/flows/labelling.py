"""What a run says of its rows: which columns and which task were guessed, and which classes no
training row has."""

from __future__ import annotations

import re

from stillhouse.core.progress import Progress
from stillhouse.data.labels import LabelRule
from stillhouse.data.sources import Pool, Splits
from stillhouse.flows.common import seen_labels
from stillhouse.models.load import label_names, load_config
from stillhouse.models.one_logit import is_one_logit
from stillhouse.tasks.base import Task

SHOWN = 8
WHOLE_NUMBER = re.compile(r"[+-]?\d+")


def label_rule(
    task: str, name: str, label_map: dict[str, str], *, trust_remote_code: bool = False
) -> LabelRule:
    """What a model that is stored already knows of the labels in its data."""
    config = load_config(name, trust_remote_code=trust_remote_code)
    if task != "auto":
        values = task in ("regression", "span")
    else:
        values = getattr(config, "problem_type", None) == "regression"
    if getattr(config, "num_labels", 1) == 1 and not is_one_logit(config, task):
        return LabelRule(values=values, classes=tuple(label_map.values()))
    names = label_names(config)
    known = [label_map.get(each, each) for each in names]
    return LabelRule(values=values, classes=(*known, *label_map.values()))


def tell_guesses(splits: Splits, progress: Progress, task: Task, *, asked: str) -> None:
    """One line of the columns that no one named, and of the task where none was `asked` for."""
    rows = next((part.rows for part in splits.train.parts), None)
    guesses = [rows.guessed] if rows is not None and rows.guessed else []
    if asked == "auto":
        guesses.append(f"task: {task.name}{_of_classes(task)}")
    if guesses:
        progress.note("; ".join(guesses))


def _of_classes(task: Task) -> str:
    """How many classes, and whether they may be values: whole numbers other than 0, 1, ..."""
    if task.name != "classification":
        return ""
    said = f" of {task.width} classes"
    names = {*task.choices}
    counted = names == {*map(str, range(task.width))}
    if task.width > 2 and not counted and all(map(WHOLE_NUMBER.fullmatch, names)):
        said += ", whose names are numbers: if they are amounts, --task regression"
    return said


def untrained_classes(task: Task, splits: Splits) -> list[str]:
    """A note of the classes that occur in rows to select or to report, and in no training row."""
    if task.name != "classification":
        return []
    elsewhere: list[Pool] = [splits.held_out, splits.reported]
    lacking = sorted(seen_labels(elsewhere) - seen_labels([splits.labelled]))
    if not lacking:
        return []
    named = ", ".join(lacking[:SHOWN]) + (", ..." if len(lacking) > SHOWN else "")
    return [f"no labelled training row is of class {named}, which held-out or reported rows have"]
