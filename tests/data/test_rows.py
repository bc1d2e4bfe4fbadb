"""Rows on disk: what is left out is counted and named by line; columns are found or asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from counting import Counting
from stillhouse.core.errors import DataError
from stillhouse.core.types import Example
from stillhouse.data.columns import Columns
from stillhouse.data.readers import Row, read
from stillhouse.data.rows import CHUNK, Rows, content_key, ingest
from stillhouse.data.usable import PEEKED


def store(
    tmp_path: Path,
    content: bytes,
    *,
    columns: Columns | None = None,
    suffix: str = ".csv",
    labelled: bool = True,
) -> Rows:
    path = tmp_path / f"data{suffix}"
    path.write_bytes(content)
    folder = tmp_path / "store" / "rows"
    return ingest(read(path), path.name, columns or Columns(), folder, labelled=labelled)


MESSY = (
    b"text,label\n"  # 1
    b"fine film,pos\n"  # 2
    b'"a\nb",neg\n'  # 3-4
    b"fine film,pos\n"  # 5 duplicated
    b"fine film,neg\n"  # 6 contradictory
    b"only text\n"  # 7 broken
    b"too,many,fields\n"  # 8 broken
    b"caf\xe9,pos\n"  # 9 non-UTF-8
    b"  ,pos\n"  # 10 empty
    b" fine film ,pos\n"  # 11 duplicated once the white space is off
    b"no label,\n"  # 12
)


def test_rows_left_out_are_counted_with_their_lines(tmp_path: Path) -> None:
    rows = store(tmp_path, MESSY)
    assert rows.dropped == {
        "broken": 2,
        "non-UTF-8": 1,
        "empty": 1,
        "duplicated": 2,
        "contradictory duplicated": 1,
    }
    assert rows.notes == [
        "data.csv: 2 broken rows left out (line 7, 8)",
        "data.csv: 1 non-UTF-8 row left out (line 9): save the file as UTF-8",
        "data.csv: 1 empty row left out (line 10)",
        "data.csv: 2 duplicated rows left out (line 5, 11)",
        "data.csv: 1 contradictory duplicated row left out (line 6)",
    ]
    assert list(rows.examples(rows.kept)) == [
        Example("fine film", None, "pos"),
        Example("a\nb", None, "neg"),
        Example("no label"),
    ]
    assert rows.labels[rows.kept].tolist() == ["pos", "neg", None]


def test_only_the_first_lines_are_listed(tmp_path: Path) -> None:
    rows = store(tmp_path, b"text,label\n" + b"a,x\n" * 8)
    assert rows.notes == ["data.csv: 7 duplicated rows left out (line 3, 4, 5, 6, 7, ...)"]


def test_stored_rows_are_read_again_without_the_file(tmp_path: Path) -> None:
    first = store(tmp_path, MESSY)
    again = ingest(iter(()), "now.csv", Columns(), first.folder, labelled=True)
    assert list(again.examples(again.kept)) == list(first.examples(first.kept))
    assert again.place(0).startswith("now.csv line ")  # the file that is given, not the first one
    assert again.notes == [note.replace("data.csv", "now.csv") for note in first.notes]
    assert again.notes != first.notes
    assert (again.keys == first.keys).all()


def test_two_runs_may_store_the_same_rows_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "store" / "rows"

    def slow() -> Iterator[Row]:
        yield 1, {"text": "a", "label": "x"}
        ingest(iter([(1, {"text": "a", "label": "x"})]), "b", Columns(), folder, labelled=True)

    assert len(ingest(slow(), "a", Columns(), folder, labelled=True).kept) == 1
    assert [p.name for p in folder.parent.iterdir()] == ["rows"]


def test_reading_many_rows_is_told_and_few_are_not(tmp_path: Path) -> None:
    def rows(count: int) -> Iterator[Row]:
        return ((i, {"text": f"text {i}", "label": "x"}) for i in range(1, count + 1))

    told = Counting()
    for count in (CHUNK - 1, CHUNK + 5):
        folder = tmp_path / str(count)
        ingest(rows(count), "data/big.csv", Columns(), folder, labelled=True, progress=told)
    assert told.found == [("reading big.csv", 0, CHUNK + 5)]
    ingest(rows(0), "data/big.csv", Columns(), folder, labelled=True, progress=told)
    assert len(told.found) == 1


def test_a_text_column_that_is_not_read_is_told(tmp_path: Path) -> None:
    content = b"question,sentence,label\nwhy,because,x\nwho,she,y\n"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    rows = store(tmp_path / "a", content)
    assert rows.notes == ["data.csv: question not read (--text-column, --pair-column say what is)"]
    asked = store(tmp_path / "b", content, columns=Columns(text="question", pair="sentence"))
    assert asked.notes == []


@pytest.mark.parametrize(
    ("content", "columns", "says"),
    [
        (b"body,label\na,x\n", Columns(), "no text column; it has body, label: .*--text-column"),
        (b"text,mood\na,x\n", Columns(), "no label column; it has text, mood: .*--label-column"),
        (b"text,label\na,x\n", Columns(text="body"), "no column 'body'; it has text, label"),
        (b"text,label\na,x\n", Columns(pair="other"), "no column 'other'; it has text, label"),
        (b"text,label\n", Columns(), r"no usable row \(it is empty\)"),
        (b"text,label\n,x\nb\n", Columns(), r"no usable row \(1 empty, 1 broken\)"),
        (b"", Columns(), r"no usable row \(it is empty\)"),
        (
            "text,label\ncaf\u00e9,x\n".encode("cp1252"),
            Columns(),
            r"\(1 non-UTF-8\): save the file",
        ),
        ("\ufefftext,label\na,x\n".encode("utf-16"), Columns(), "is UTF-16: save it as UTF-8"),
    ],
)
def test_data_that_cannot_be_used_is_one_printable_line(
    tmp_path: Path, content: bytes, columns: Columns, says: str
) -> None:
    with pytest.raises(DataError, match=says) as caught:
        store(tmp_path, content, columns=columns)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()
    assert not list((tmp_path / "store").glob("*"))


def test_pairs_need_both_texts(tmp_path: Path) -> None:
    rows = store(tmp_path, b"premise,hypothesis,label\na,b,x\nc,,x\n")
    assert list(rows.examples(rows.kept)) == [Example("a", "b", "x")]
    assert rows.dropped == {"empty": 1}


def test_values_that_are_no_text_become_text(tmp_path: Path) -> None:
    lines = b'{"text": "a", "label": 1}\n{"text": "b", "label": true}\n{"text": 3, "label": null}\n'
    rows = store(tmp_path, lines, suffix=".jsonl")
    examples = list(rows.examples(rows.kept))
    assert examples == [Example("a", None, "1"), Example("b", None, "true"), Example("3")]


def test_the_content_key_tells_text_and_pair_apart() -> None:
    keys = {
        content_key("ab", None),
        content_key("a", "b"),
        content_key("b", "a"),
        content_key("ab", ""),
    }
    assert len(keys) == 4


def test_examples_come_in_the_order_asked_for(tmp_path: Path) -> None:
    rows = store(tmp_path, b"text,label\na,x\nb,y\nc,x\n")
    assert [e.text for e in rows.examples(np.array([2, 0, 2]))] == ["c", "a", "c"]


def test_of_two_equal_texts_the_labelled_one_is_kept(tmp_path: Path) -> None:
    source = [(2, {"text": "a", "label": None}), (3, {"text": "a", "label": "x"}),
              (4, {"text": "a", "label": "y"}), (5, {"text": "a", "label": ""})]  # fmt: skip
    rows = ingest(source, "here", Columns(), tmp_path / "rows", labelled=True)
    assert [(e.text, e.label) for e in rows.examples(rows.kept)] == [("a", "x")]
    assert rows.dropped == {"duplicated": 2, "contradictory duplicated": 1}


def jsonl(*rows: Mapping[str, object]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


UNLABELLED = [{"text": f"text {i}"} for i in range(PEEKED + 20)]


@pytest.mark.parametrize("asked", [Columns(), Columns(label="label"), Columns(text="text")])
@pytest.mark.parametrize("before", [1, PEEKED + 20])
def test_columns_are_all_that_any_row_has(tmp_path: Path, before: int, asked: Columns) -> None:
    """The first row's keys are not those of the file, nor are those of its first rows."""
    content = jsonl(*UNLABELLED[:before], {"text": "a", "label": "x"})
    rows = store(tmp_path, content, columns=asked, suffix=".jsonl")
    assert rows.labels.tolist() == [None] * before + ["x"]


def test_a_csv_has_the_columns_of_its_header(tmp_path: Path) -> None:
    rows = store(tmp_path, b"text,label\nonly text\na,x\n")
    assert list(rows.examples(rows.kept)) == [Example("a", None, "x")]
    assert rows.notes == ["data.csv: 1 broken row left out (line 2)"]


@pytest.mark.parametrize("before", [1, PEEKED + 20])
def test_a_second_text_that_only_some_rows_have_is_refused(tmp_path: Path, before: int) -> None:
    labelled = [{**row, "label": "x"} for row in UNLABELLED[:before]]
    content = jsonl(*labelled, {"text": "a", "label": "x", "pair": "b"})
    with pytest.raises(DataError, match=r"line \d+ has (no )?pair, which .*--pair-column"):
        store(tmp_path, content, suffix=".jsonl")


def test_a_row_with_a_better_column_than_those_before_is_refused(tmp_path: Path) -> None:
    labelled = [{**row, "class": "x"} for row in UNLABELLED]
    content = jsonl(*labelled, {"text": "a", "class": "x", "label": "y"})
    with pytest.raises(DataError, match="has label, which the rows before it lack: say which"):
        store(tmp_path, content, suffix=".jsonl")
    (tmp_path / "asked").mkdir()
    asked = Columns(text="text", label="class")
    rows = store(tmp_path / "asked", content, suffix=".jsonl", columns=asked)
    assert set(rows.labels) == {"x"}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": ["a", "b"], "label": "x"}, "line 1: column text holds lists"),
        ({"text": {"body": "a"}, "label": "x"}, "--text-column text.NAME"),
        (
            {"text": "a", "labels": ["x", "y"]},
            "several labels a row: multi-label classification is not",
        ),
        ({"text": "a", "label": {"name": "x"}}, "--label-column label.NAME"),
        ({"text": "a", "pair": ["b"], "label": "x"}, "--pair-column"),
    ],
)
def test_lists_and_objects_are_no_cells(tmp_path: Path, row: dict[str, object], says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        store(tmp_path, jsonl(row), suffix=".jsonl")
    assert "\n" not in str(caught.value)


def test_a_field_inside_an_object_is_a_column(tmp_path: Path) -> None:
    content = jsonl({"text": {"body": "a"}, "label": {"name": "x"}}, {"text": {"body": "b"}})
    columns = Columns(text="text.body", label="label.name")
    rows = store(tmp_path, content, suffix=".jsonl", columns=columns)
    assert list(rows.examples(rows.kept)) == [Example("a", None, "x"), Example("b")]


def test_bytes_are_text(tmp_path: Path) -> None:
    cells = {"text": [b"caf\xc3\xa9", b"caf\xe9"], "label": [b"x", b"y"]}
    pq.write_table(pa.table(cells), tmp_path / "a.parquet")
    folder = tmp_path / "rows"
    rows = ingest(read(tmp_path / "a.parquet"), "a.parquet", Columns(), folder, labelled=True)
    assert list(rows.examples(rows.kept)) == [Example("caf\u00e9", None, "x")]
    assert rows.dropped == {"non-UTF-8": 1}


def test_a_number_that_is_none_is_no_label(tmp_path: Path) -> None:
    rows = store(tmp_path, b'{"text": "a", "label": NaN}\n{"text": "b", "label": 1.0}\n',
                 suffix=".jsonl")  # fmt: skip
    assert rows.labels.tolist() == [None, "1.0"]


def test_what_was_guessed_of_the_columns_is_known(tmp_path: Path) -> None:
    content = b"premise,hypothesis,class\na,b,x\n"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    guessed = "text from column premise, pair from column hypothesis, labels from column class"
    assert store(tmp_path / "a", content).guessed == guessed
    asked = Columns(text="premise", pair="hypothesis", label="class")
    assert store(tmp_path / "b", content, columns=asked).guessed is None


def test_renamed_labels_are_those_of_the_examples_too(tmp_path: Path) -> None:
    rows = store(tmp_path, b"text,label\na,x\nb,-1\nc,y\nd,\n")
    other = rows.renamed({"x": "y", "-1": None})
    assert other.labels.tolist() == ["y", None, "y", None]
    assert [e.label for e in other.examples(other.kept)] == ["y", None, "y", None]
    assert other.label_counts == {"y": 2}
    assert rows.labels.tolist() == ["x", "-1", "y", None]


def test_twins_with_another_label_are_told_and_kept(tmp_path: Path) -> None:
    """Nothing says which of two spellings of a text has the right label."""
    content = (
        "text,label\n"
        "Good film,pos\n"  # 2
        "good  film,neg\n"  # 3: another label
        "GOOD film,POS\n"  # 4: the same one
        "good fi\u200blm,\n"  # 5: none
        "bad film,neg\n"  # 6
        "Bad film,pos\n"  # 7: another label
    )
    rows = store(tmp_path, content.encode())
    assert len(rows.kept) == 6
    assert rows.notes == [
        "data.csv: 2 rows kept whose text is an earlier one's but for case, spacing or Unicode "
        "form, and whose label is another (line 3, 7): correct them"
    ]


def test_a_pair_turned_round_may_have_another_label(tmp_path: Path) -> None:
    """That a follows from b says nothing of b from a."""
    content = b"sentence1,sentence2,label\na,b,yes\nb,a,no\nA,b,no\n"
    (note,) = store(tmp_path, content).notes
    assert note.startswith("data.csv: 1 row kept whose text is an earlier one's")
    assert "(line 4)" in note


@pytest.mark.parametrize(
    "blank", ["\u200b\u200b", "\u00ad", "\u2060", "\u200d \ufe0f", "\u180e", "\u2800", "\u3000"]
)
def test_a_text_of_which_nothing_is_seen_is_empty(tmp_path: Path, blank: str) -> None:
    rows = store(tmp_path, f"text,label\na,x\n{blank},x\n{blank}b,y\n".encode())
    assert rows.dropped == {"empty": 1}
    assert [row.label for row in rows.examples(rows.kept)] == ["x", "y"]


@pytest.mark.parametrize("answer", ["\u0958\u0932\u092e", "cafe\u0301", "\u0627\u200f\u0628"])
def test_an_answer_in_a_passage_stays_as_it_is_there(tmp_path: Path, answer: str) -> None:
    """Normalised, it would not be found in its passage."""
    row = {"question": "what?", "context": f"it is {answer} .", "answers": {"text": [answer]}}
    rows = store(tmp_path, jsonl(row), columns=Columns(), suffix=".jsonl")
    (found,) = rows.examples(rows.kept)
    assert json.loads(found.label or "")["text"] == [answer]
