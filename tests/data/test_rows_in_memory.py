"""Data from memory are read as the same rows in a file are."""

from __future__ import annotations

import csv
import datetime
import enum
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from stillhouse.core.config import DataConfig
from stillhouse.core.errors import StillhouseError
from stillhouse.core.settings import parse
from stillhouse.data.memory import data_section
from stillhouse.data.sources import Splits, load


def _frame(path: Path) -> pd.DataFrame:
    return pd.read_csv(path)


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class Answer(enum.Enum):
    YES = "yes"


def _classes(path: Path) -> datasets.Dataset:
    """With labels as ids of named classes, as data sets have them."""
    made = datasets.Dataset.from_pandas(_frame(path))
    return made.class_encode_column("label")


FORMS: dict[str, Callable[[Path], Any]] = {
    "a frame": _frame,
    "a frame of categories": lambda path: _frame(path).astype({"label": "category"}),
    "a shuffled index": lambda path: _frame(path).set_index(np.arange(120)[::-1]),
    "dicts": _rows,
    "a tuple of dicts": lambda path: tuple(_rows(path)),
    "a data set": lambda path: datasets.Dataset.from_pandas(_frame(path)),
    "a data set of classes": _classes,
    "an Arrow table": lambda path: pa.Table.from_pandas(_frame(path)),
}


def splits(data: Any, store: Path) -> Splits:
    return load(parse(DataConfig, data_section(data, store)), store / "rows")


@pytest.mark.parametrize("form", list(FORMS))
def test_rows_in_memory_are_split_as_those_of_a_file(
    form: str, reviews: Path, tmp_path: Path
) -> None:
    mine = splits(FORMS[form](reviews), tmp_path)
    theirs = splits(str(reviews), tmp_path)
    assert mine.fingerprint == theirs.fingerprint
    assert len(mine.labelled) > 50


def test_the_same_content_is_the_same_path_and_other_content_another(
    reviews: Path, tmp_path: Path
) -> None:
    frame = _frame(reviews)
    first = data_section(frame, tmp_path)["path"]
    assert Path(first).name.startswith("DataFrame-")
    assert data_section(frame.copy(), tmp_path)["path"] == first
    assert data_section(frame.head(90), tmp_path)["path"] != first
    assert len(list((tmp_path / "memory").iterdir())) == 2


def test_splits_and_other_settings_come_along(reviews: Path, tmp_path: Path) -> None:
    frame = _frame(reviews)
    both = {"train": frame.head(90), "test": frame.tail(30)}
    for given in (both, datasets.DatasetDict({k: datasets.Dataset.from_pandas(v)
                                              for k, v in both.items()})):  # fmt: skip
        found = splits(given, tmp_path)
        assert len(found.reported) == 30
    renamed = frame.rename(columns={"text": "review"})
    extra = ["a film nobody has seen", "a second one"]
    found = splits({"path": renamed, "text": "review", "unlabelled": extra}, tmp_path)
    assert len(found.unlabelled) == 2
    settings = data_section({"path": frame, "dev": frame.tail(40)}, tmp_path)
    assert Path(settings["dev"]).is_file()
    assert data_section(parse(DataConfig, settings), tmp_path)["path"] == settings["path"]


def test_what_is_missing_is_missing(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "text": ["a", "b", "c", "d"],
            "label": [1.5, float("nan"), 2.5, 3.5],
            "day": [pd.NaT, datetime.date(2020, 1, 2), pd.Timestamp("2020-01-02"), None],
            "count": pd.array([1, pd.NA, 3, 4], dtype="Int64"),
            "list": [np.arange(2), [1, 2], ("a",), {"a": np.float32(0.5)}],
        }
    )
    path = Path(data_section(frame, tmp_path)["path"])
    assert path.read_text().splitlines() == [
        '{"text": "a", "label": 1.5, "day": null, "count": 1, "list": [0, 1]}',
        '{"text": "b", "label": null, "day": "2020-01-02", "count": null, "list": [1, 2]}',
        '{"text": "c", "label": 2.5, "day": "2020-01-02T00:00:00", "count": 3, "list": ["a"]}',
        '{"text": "d", "label": 3.5, "day": null, "count": 4, "list": {"a": 0.5}}',
    ]


REFUSED: list[tuple[Any, str]] = [
    (None, "data is None: give a path"),
    (3, "data is an int: give a path"),
    (print, "data is the function print"),
    (dict, "data is the class dict"),
    (object(), "data is an object"),
    (iter([]), "data is a list_iterator"),
    (np.zeros(3), "data is a ndarray|data is an ndarray"),
    ([], "data is an empty list: it has no row"),
    (pd.DataFrame({"text": []}), "data is an empty DataFrame"),
    ([("a", "b")], "row 1 of data is a tuple: a row is a dict"),
    ([{"text": object()}], "row 1 of data: text is an object"),
    ([{"text": "a", "label": float("inf")}], "row 1 of data: label is inf"),
    (pd.DataFrame([["a", "b"]]), "data has a column 0: name its columns"),
    (pd.DataFrame([["a", "b"]], columns=["text", "text"]), "has two columns 'text'"),
    ({"path": 3}, "data's path is an int: give a path"),
]


@pytest.mark.parametrize("at", range(len(REFUSED)))
def test_what_is_no_data_is_refused_by_its_name_and_leaves_nothing(at: int, tmp_path: Path) -> None:
    data, says = REFUSED[at]
    with pytest.raises(StillhouseError, match=says) as caught:
        data_section(data, tmp_path)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert not list(tmp_path.glob("memory/*"))


def test_values_in_memory_are_read_as_cells_of_a_file_are(tmp_path: Path) -> None:
    rows = [
        {"text": b"a", "label": Decimal("1E+2")},
        {"text": "b", "label": Decimal("NaN")},
        {"text": "c", "label": Answer.YES},
        {"text": "d", "label": np.str_("no")},
    ]
    path = Path(data_section(rows, tmp_path)["path"])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"text": "a", "label": "100"},
        {"text": "b", "label": None},
        {"text": "c", "label": "yes"},
        {"text": "d", "label": "no"},
    ]


def test_a_row_in_memory_is_named_by_what_held_it_and_its_number(
    reviews: Path, tmp_path: Path
) -> None:
    frame = _frame(reviews)
    frame.loc[3, "text"] = ""
    both = {"train": frame.head(90), "test": frame.tail(30)}
    named = ((frame, "the DataFrame: "), (frame.to_dict("records"), "the rows: "),
             (both, "train rows of the dict: "))  # fmt: skip
    for data, name in named:
        (note,) = [note for note in splits(data, tmp_path).notes if "empty" in note]
        assert note.startswith(name)
        assert "(row 4)" in note
    with pytest.raises(StillhouseError, match=r"^the rows has no usable row|^the rows ") as caught:
        splits([{"text": "one"}], tmp_path)
    assert str(tmp_path) not in str(caught.value)
