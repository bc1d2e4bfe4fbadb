"""A cell is the same text whatever file it came from."""

from __future__ import annotations

import datetime
import enum
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stillhouse.core.errors import DataError
from stillhouse.data.cells import fold_label, is_utf8, label_of, text_of, value_at


class Mood(enum.Enum):
    GOOD = "good"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (" a ", "a"),
        ("", None),
        (None, None),
        (float("nan"), None),
        (np.float64("nan"), None),
        (Decimal("NaN"), None),
        (pd.NaT, None),
        (pd.NA, None),
        (True, "true"),
        (np.bool_(False), "false"),
        (3, "3"),
        (np.int8(-1), "-1"),
        (1.0, "1.0"),
        (Decimal("1.50"), "1.50"),
        (b"caf\xc3\xa9", "caf\u00e9"),
        (bytearray(b"x"), "x"),
        (datetime.date(2020, 1, 2), "2020-01-02"),
        (pd.Timestamp("2020-01-02"), "2020-01-02T00:00:00"),
        (Mood.GOOD, "good"),
    ],
)
def test_text_and_label_of_a_cell(value: Any, text: str | None) -> None:
    assert text_of(value, "text", "--text-column") == text
    assert label_of(value, "label") == text


def test_bytes_that_are_not_utf8_are_known_as_such() -> None:
    assert not is_utf8(text_of(b"caf\xe9", "text", "--text-column"))
    assert is_utf8("caf\u00e9", None)


@pytest.mark.parametrize("value", [["a", "b"], ("a",), np.array(["a"]), []])
def test_lists_are_no_text(value: Any) -> None:
    with pytest.raises(DataError, match="column text holds lists: join each"):
        text_of(value, "text", "--text-column")


@pytest.mark.parametrize("value", [["toxic", "insult"], [0, 1, 0], np.array([1, 0])])
def test_a_list_of_labels_is_several_labels(value: Any) -> None:
    with pytest.raises(DataError, match="column labels holds lists, several labels a row"):
        label_of(value, "labels")


def test_objects_name_their_fields() -> None:
    value = {"body": "a", "lang": "en"}
    with pytest.raises(DataError, match=r"objects of body, lang: .* --text-column text\.NAME"):
        text_of(value, "text", "--text-column")
    with pytest.raises(DataError, match=r"--label-column label\.NAME"):
        label_of(value, "label")


def test_answers_in_squads_form_are_a_label() -> None:
    one = {"text": ["Paris"], "answer_start": [3]}
    assert label_of(one, "answers") == '{"answer_start": [3], "text": ["Paris"]}'
    assert label_of({"text": [], "answer_start": []}, "answers") is None
    assert label_of([one], "answers") == '[{"answer_start": [3], "text": ["Paris"]}]'
    assert label_of([], "answers") is None


def test_a_field_inside_an_object_has_a_dotted_name() -> None:
    row = {"text": {"body": {"en": "a"}}, "a.b": "c", "other": None, "plain": "d"}
    assert value_at(row, "text.body.en") == "a"
    assert value_at(row, "text.none") is None
    assert value_at(row, "a.b") == "c"
    assert value_at(row, "other.x") is None
    with pytest.raises(DataError, match=r"column plain holds no objects, so there is no plain\.x"):
        value_at(row, "plain.x")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Positive", "positive "),
        ("caf\u00e9", "cafe\u0301"),
        ("th\u00e9", "th\u00e9\u200b"),
        ("very  good", "very\u00a0good"),
        ("\uff21", "a"),
        ("1", "1.0"),
        ("-1", "-1."),
    ],
)
def test_labels_that_look_alike_fold_alike(one: str, other: str) -> None:
    assert fold_label(one) == fold_label(other)


def test_labels_that_differ_fold_differently() -> None:
    different = ["1", "1.5", "10", "-1", "01", "pos", "pos2", "caf\u00e9", "cafe"]
    assert len({fold_label(each) for each in different}) == len(different)


def test_a_label_is_stored_composed_and_without_what_is_not_seen() -> None:
    assert label_of("cafe\u0301\u200b", "label") == "caf\u00e9"
    assert label_of("\u200b", "label") is None
    family = "\U0001f468\u200d\U0001f469"  # joined by a character that is part of its spelling
    assert label_of(family, "label") == family
