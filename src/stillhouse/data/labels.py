"""One rule for the labels of all files of a run: which spellings are one class, and which stand for
no label."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from stillhouse.core.config import DataConfig
from stillhouse.core.errors import DataError
from stillhouse.core.settings import quoted
from stillhouse.core.units import counted
from stillhouse.data.cells import SEVERAL_LABELS, WHOLE, fold_label, is_answers
from stillhouse.data.places import spoken
from stillhouse.data.rows import Rows

HIDDEN = "-1"  # how data sets with classes 0, 1, 2, ... mark a label that is not given
MANY = 10_000  # more different labels are no classes
EMPTY_WORDS = ("nan", "none", "null", "n/a", "na", "<na>", "nat", "#n/a")
LIST = re.compile(r"\[\s*(?:(?:'[^']*'|\"[^\"]*\"|-?\d+(?:\.\d+)?)\s*[,;]?\s*)*\]")
SHOWN = 6


@dataclass(frozen=True)
class LabelRule:
    """`values`: labels are numbers or texts, not classes. `classes`: names that a model tells
    apart, as the data would name them; they stay apart, and are labels."""

    values: bool = False
    classes: Sequence[str] = ()


@dataclass
class Agreed:
    """By what name each label goes that changes; None: it stands for no label."""

    names: dict[str, str | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def agree_labels(
    files: dict[str, Rows], config: DataConfig, rule: LabelRule
) -> tuple[dict[str, Rows], list[str]]:
    """The files of each split with the labels that they agree on, and what is to be said of it. A
    test split all of whose labels are hidden is left out where there is another to report on.

    Raises DataError where there is none, or for several labels in one.
    """
    path = spoken(config.path)
    counts = [rows.label_counts for rows in files.values()]
    agreed = agree(counts, path, rule, no_label=config.no_label)
    if agreed.names:
        files = {split: rows.renamed(agreed.names) for split, rows in files.items()}
    if "test" in files and not files["test"].label_counts:
        count = len(files["test"].kept)
        if "dev" not in files:
            raise DataError(
                f"{path}: none of the {count} test rows has a label to report on: give a file with "
                "labels (data.dev), or leave the test file out"
            )
        files = {split: rows for split, rows in files.items() if split != "test"}
        agreed.notes.append(
            f"{path}: none of the {count} test rows has a label, so the validation rows are "
            "reported on"
        )
    return files, agreed.notes


def agree(
    counts: Iterable[Counter[str]], path: str, rule: LabelRule, *, no_label: str | None = None
) -> Agreed:
    """What becomes of the labels that were counted in each file."""
    total = sum(counts, Counter[str]())
    agreed = Agreed()
    if no_label is None:
        _hide_minus_one(total, path, rule, agreed)
    else:
        hidden = [name for name in total if fold_label(name) == fold_label(no_label)]
        agreed.names.update(dict.fromkeys(hidden))
    left = Counter({label: n for label, n in total.items() if label not in agreed.names})
    if rule.values or not left or len(left) > MANY or all(map(is_answers, left)):
        return agreed
    if all(LIST.fullmatch(name) for name in left):
        raise DataError(f"{path}: labels are lists such as {min(left)}, {SEVERAL_LABELS}")
    if _are_numbers(left):
        _as_integers(left, path, rule, agreed)
    else:
        _merge(left, path, rule, agreed)
        _tell_empty_words(left, path, rule, agreed)
    return agreed


def _hide_minus_one(total: Counter[str], path: str, rule: LabelRule, agreed: Agreed) -> None:
    """-1 stands for no label where the other labels are classes 0, 1, ..., or there are none."""
    spelled = {name for name in total if fold_label(name) == HIDDEN}
    if rule.values or not spelled or spelled & {*rule.classes}:
        return
    others = {fold_label(name) for name in total} - {HIDDEN}
    numbered = len(others) > 1 and "0" in others and all(name.isdecimal() for name in others)
    if numbered or not others:
        agreed.names.update(dict.fromkeys(spelled))
        rows = sum(total[name] for name in spelled)
        agreed.notes.append(
            f"{path}: {counted(rows, 'row')} with the label {HIDDEN}, which is read as none, as "
            "the other labels are 0, 1, ...: if it is a class, --set data.no_label=none"
        )


def _are_numbers(labels: Iterable[str]) -> bool:
    try:
        return all(float(label) is not None for label in labels)
    except ValueError:
        return False


def _as_integers(left: Counter[str], path: str, rule: LabelRule, agreed: Agreed) -> None:
    """Whole numbers that were stored as floats become integers, where all labels are whole."""
    found = {name: WHOLE.fullmatch(name) for name in left}
    if not all(match or re.fullmatch(r"[+-]?\d+", name) for name, match in found.items()):
        return
    floats = {name: match.group(1) for name, match in found.items() if match}
    if floats and not {*floats} & {*rule.classes}:
        agreed.names.update(floats)
        shown = ", ".join(sorted(floats)[:SHOWN])
        agreed.notes.append(f"{path}: labels are whole numbers: {shown} are read as integers")


def _merge(left: Counter[str], path: str, rule: LabelRule, agreed: Agreed) -> None:
    """Labels that differ in case, white space or Unicode form only go by their commonest name."""
    groups: dict[str, list[str]] = {}
    for name in sorted(left, key=lambda name: (-left[name], name)):
        groups.setdefault(fold_label(name), []).append(name)
    apart = Counter(fold_label(name) for name in {*rule.classes})
    merged = {first: rest for fold, (first, *rest) in groups.items() if rest and apart[fold] < 2}
    for first, rest in merged.items():
        agreed.names.update(dict.fromkeys(rest, first))
    if merged:
        shown = [
            f"{first} ({', '.join(map(_shown, rest[:SHOWN]))})"
            for first, rest in sorted(merged.items())[:SHOWN]
        ]
        agreed.notes.append(
            f"{path}: labels that differ in case, spacing or Unicode form only are one class: "
            + ", ".join(shown)
        )


def _shown(label: str) -> str:
    """A label so that its form is seen."""
    return label if label.isascii() and "  " not in label else ascii(label)


def _tell_empty_words(left: Counter[str], path: str, rule: LabelRule, agreed: Agreed) -> None:
    known = {*map(fold_label, rule.classes)}
    for name, rows in sorted(left.items()):
        word = fold_label(name)
        if name not in agreed.names and word in EMPTY_WORDS and word not in known:
            agreed.notes.append(
                f"{path}: {name} is read as the name of a class ({counted(rows, 'row')}): if it "
                f"stands for no label, --set {quoted('data.no_label', name)}"
            )
