"""All files of a run agree on what their labels are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import tiny
from stillhouse.core.config import DataConfig, FinetuneConfig
from stillhouse.core.errors import DataError
from stillhouse.core.settings import override, parse
from stillhouse.data.labels import LabelRule, agree
from stillhouse.data.sources import Splits, load

TEXTS = [text for text, _ in tiny.sentences(60)]


def names(*files: dict[str, int], rule: LabelRule | None = None, **more: Any) -> dict[str, Any]:
    return agree(map(Counter, files), "data", rule or LabelRule(), **more).names


def splits(tmp_path: Path, *, settings: dict[str, Any] | None = None, **files: list[Any]) -> Splits:
    """The splits of a folder whose files have these labels, each with other texts."""
    start, folder = 0, tmp_path / "data"
    for name, labels in files.items():
        rows = list(zip(TEXTS[start : start + len(labels)], labels, strict=True))
        tiny.write_csv(folder / f"{name}.csv", ["text", "label"], rows)
        start += len(labels)
    return load(DataConfig(path=str(folder), **(settings or {})), tmp_path / "store")


@pytest.mark.parametrize(
    ("files", "changed"),
    [
        ([{"pos": 2, "neg": 3}], {}),
        ([{"0": 2, "1": 3}], {}),
        ([{"0.0": 2, "1.0": 3}, {"0": 1, "1": 1}], {"0.0": "0", "1.0": "1"}),
        ([{"0.0": 2, "1.0": 3}], {"0.0": "0", "1.0": "1"}),
        ([{"0.5": 2, "1.0": 3}, {"2": 1}], {}),  # values of a regression
        ([{"1.0": 1, "1": 2, "spam": 3}], {"1.0": "1"}),
        ([{"v1.0": 1, "v1": 2}], {}),
        ([{"0": 2, "1": 3}, {"-1": 4}], {"-1": None}),
        ([{"0": 2, "1": 3, "2": 1, "-1": 4}], {"-1": None}),
        ([{"0.0": 2, "1.0": 3}, {"-1": 4}], {"-1": None, "0.0": "0", "1.0": "1"}),
        ([{"-1": 4}], {"-1": None}),
        ([{"-1": 4, "1": 3}], {}),  # two classes
        ([{"-1": 4, "0": 3}], {}),
        ([{"-1": 4, "0": 3, "0.5": 1}], {}),
        ([{"-1": 4, "pos": 3, "neg": 1}], {}),
        ([{"Pos": 2, "neg": 3}, {"pos": 1, "POS": 1}], {"POS": "Pos", "pos": "Pos"}),
        ([{'{"text": ["Paris"]}': 1, '{"text": ["paris"]}': 1}], {}),
    ],
)
def test_what_becomes_of_labels(files: list[dict[str, int]], changed: dict[str, Any]) -> None:
    assert names(*files) == changed


def test_what_a_model_tells_apart_stays_apart() -> None:
    files = [{"A": 3, "a": 2}, {"B": 1, "b": 2}]
    assert names(*files) == {"a": "A", "B": "b"}
    assert names(*files, rule=LabelRule(classes=["A", "a", "b"])) == {"B": "b"}
    hidden = [{"-1": 3, "0": 2, "1": 2}]
    assert names(*hidden, rule=LabelRule(classes=["-1", "0", "1"])) == {}
    assert names(*hidden, rule=LabelRule(values=True)) == {}


def test_a_label_that_stands_for_none_can_be_named() -> None:
    files = [{"-1": 3, "0": 2, "1": 2}]
    assert names(*files, no_label="none") == {}
    assert names({"N/A": 3, "n/a": 1, "a": 2, "b": 2}, no_label="N/A") == {"N/A": None, "n/a": None}


def test_what_is_done_is_said_in_one_line() -> None:
    found = agree([Counter({"good": 3, "Good": 1, "nan": 2, "th\u00e9  x": 1, "th\u00e9 x": 2})],
                  "data", LabelRule())  # fmt: skip
    assert found.notes == [
        "data: labels that differ in case, spacing or Unicode form only are one class: "
        "good (Good), th\u00e9 x ('th\\xe9  x')",
        "data: nan is read as the name of a class (2 rows): if it stands for no label, "
        "--set data.no_label=nan",
    ]
    (hidden,) = agree([Counter({"0": 3, "1": 1, "-1": 2})], "data", LabelRule()).notes
    assert "2 rows with the label -1, which is read as none" in hidden
    assert agree([Counter({"good": 3, "bad": 1})], "data", LabelRule()).notes == []


@pytest.mark.parametrize("labels", [["[0, 1, 0]", "[1, 0, 0]"], ["['a', 'b']", "[]"]])
def test_lists_written_as_texts_are_several_labels(labels: list[str]) -> None:
    with pytest.raises(DataError, match=r"labels are lists such as .*, several labels a row"):
        names(Counter(labels))
    assert names({"[POS]": 1, "[NEG]": 2}) == {}


def test_hidden_test_labels_leave_the_report_to_the_validation_rows(tmp_path: Path) -> None:
    found = splits(tmp_path, train=[0, 1] * 15, validation=[1, 0] * 5, test=[-1] * 10)
    assert {example.text for example in found.reported} == set(TEXTS[30:40])
    assert set(found.reported.labels) == {"0", "1"}
    assert any("none of the 10 test rows has a label" in note for note in found.notes)


def test_hidden_test_labels_without_another_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of the 10 test rows has a label to report on"):
        splits(tmp_path, train=[0, 1] * 15, test=[-1] * 10)


def test_rows_with_a_hidden_label_are_for_the_teacher_only(tmp_path: Path) -> None:
    found = splits(tmp_path, train=[0, 1, -1] * 10, dev=[1, 0] * 5)
    assert set(found.labelled.labels) == {"0", "1"}
    assert len(found.unlabelled) == 10
    kept = splits(tmp_path / "b", settings={"no_label": "none"}, train=[0, 1, -1] * 10,
                  dev=[1, 0] * 5)  # fmt: skip
    assert set(kept.labelled.labels) == {"-1", "0", "1"}


def test_floats_of_one_file_are_the_integers_of_another(tmp_path: Path) -> None:
    found = splits(tmp_path, train=["0.0", "1.0", ""] * 10, dev=["1", "0"] * 5)
    assert set(found.labelled.labels) == set(found.reported.labels) == {"0", "1"}
    assert {example.label for example in found.labelled} == {"0", "1"}


def test_spellings_of_one_class_are_no_contradiction(tmp_path: Path) -> None:
    rows = [("a", "Pos"), ("a", "pos"), ("b", "neg"), ("b", "pos")]
    rows += [(text, "pos") for text in TEXTS]
    path = tiny.write_csv(tmp_path / "a.csv", ["text", "label"], rows)
    found = load(DataConfig(path=str(path)), tmp_path / "store")
    assert found.dropped["duplicated"] == found.dropped["contradictory duplicated"] == 1


@pytest.mark.parametrize("label", ["nan", "9", "-1", "true", "n/a", "3.5"])
def test_the_setting_that_is_advised_is_one(label: str) -> None:
    """A word that YAML takes for a number, or for a truth, is a label here."""
    found = parse(FinetuneConfig, override(
        {"model": "m", "data": {"path": "p"}}, [f"data.no_label={label}"]))  # fmt: skip
    assert found.data.no_label == label


def test_answers_in_either_form_are_no_classes() -> None:
    for form in ('{"text": ["us"]}', '[{"text": "us"}]'):
        other = form.replace("us", "US")
        assert names({form: 5, other: 1}) == {}
