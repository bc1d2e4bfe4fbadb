"""CSV is read strictly: a quote out of place is named with its line; what is unusual is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillhouse.core.errors import DataError
from stillhouse.data.delimited import BROKEN
from stillhouse.data.readers import read

ROWS = [(f"film {i} was fine", "pos" if i % 2 else "neg") for i in range(20)]


def lines(rows: list[tuple[str, str]], *, between: str = ",") -> str:
    return "".join(f"{text}{between}{label}\n" for text, label in rows)


def table(tmp_path: Path, content: str, name: str = "a.csv") -> list[tuple[str, str]]:
    path = tmp_path / name
    path.write_bytes(content.encode())
    return [(row["text"], row["label"]) for _, row in read(path) if BROKEN not in row]


def refused(tmp_path: Path, content: str) -> str:
    with pytest.raises(DataError) as caught:
        table(tmp_path, content)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_quote_that_is_never_closed_is_named_where_it_opens(tmp_path: Path) -> None:
    content = "text,label\n" + lines(ROWS[:5]) + '"5 inch screen,neg\n' + lines(ROWS[5:])
    assert "line 7: a quote opens here and is never closed" in refused(tmp_path, content)


def test_an_open_quote_in_the_last_column_is_named_too(tmp_path: Path) -> None:
    content = 'text,label\n"two\nlines",pos\n' + '"more\nlines","neg\n' + lines(ROWS)
    assert "line 5: a quote opens here and is never closed" in refused(tmp_path, content)


def test_a_quote_that_the_next_stray_quote_closes_is_named_with_both_lines(tmp_path: Path) -> None:
    content = f'text,label\n"5 inch,neg\n{lines(ROWS)}"6 inch,pos\n{lines(ROWS[:2])}'
    assert "line 2: a quote opens here and closes in line 23 before" in refused(tmp_path, content)


@pytest.mark.parametrize("label_first", [False, True])
def test_rows_swallowed_by_a_quote_that_closes_by_the_rules_are_refused(
    tmp_path: Path, *, label_first: bool
) -> None:
    """`the screen is 5",pos` closes a quote as a text of several lines would."""
    clean = lines([(b, a) for a, b in ROWS] if label_first else ROWS)
    first = 'neg,"5 inch\n' if label_first else '"5 inch,neg\n'
    last = 'pos,it is 5"\n' if label_first else 'it is 5",pos\n'
    header = "label,text\n" if label_first else "text,label\n"
    said = refused(tmp_path, header + clean + first + clean + last + clean)
    assert "line 22: a quote opens here and closes in line 43, and each of these lines" in said


def test_commas_part_the_columns_of_a_header_that_has_other_signs_too(tmp_path: Path) -> None:
    content = "text,label,a;b|c;d\n" + "".join(f"film; {i},pos,x\n" for i in range(3))
    assert table(tmp_path, content) == [(f"film; {i}", "pos") for i in range(3)]


def test_rows_swallowed_where_no_column_is_like_a_label_are_refused(tmp_path: Path) -> None:
    pairs = "".join(f"source {i},target {i}\n" for i in range(20))
    content = f'text,label\n{pairs}"5 inch,of it\nab,cd\nef,gh\nit is 5",all\n'
    assert "line 22: a quote opens here and closes in line 25" in refused(tmp_path, content)


@pytest.mark.parametrize(
    "text",
    [
        "Great place, really\nwould go again",  # each line could be a row of two columns
        "Dear Sir, hello\nI went, we saw\nbye, me",
        "one, two\n\nthree, four\nfive",
        'she said "no, thanks"\r\nand left, pos',
    ],
)
def test_a_text_of_several_lines_with_commas_is_one_text(tmp_path: Path, text: str) -> None:
    quoted = '"' + text.replace('"', '""') + '",pos\n'
    content = "text,label\n" + lines(ROWS) + quoted
    assert table(tmp_path, content) == [*ROWS, (text, "pos")]


def test_a_quote_written_with_a_backslash_is_refused(tmp_path: Path) -> None:
    said = refused(tmp_path, 'text,label\n"fine",pos\n"a meal \\"the\\" best",pos\n')
    assert 'line 3 writes a quote inside a text as \\"' in said


def test_a_quote_inside_a_plain_field_is_a_letter(tmp_path: Path) -> None:
    assert table(tmp_path, 'text,label\n5" wide,pos\n') == [('5" wide', "pos")]


@pytest.mark.parametrize("between", [";", "\t", "|"])
@pytest.mark.parametrize("said", [False, True])
def test_other_delimiters_are_known_by_the_header(
    tmp_path: Path, between: str, *, said: bool
) -> None:
    rows = [("fine, really", "pos"), ("bad", "neg")]
    first = f"sep={between}\n" if said else ""
    content = first + f"text{between}label\n" + lines(rows, between=between)
    assert table(tmp_path, content) == rows


def test_lines_are_counted_behind_a_line_that_names_the_delimiter(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('sep=;\ntext;label\na;x\n"b\nb";y\nc;x\n')
    assert [line for line, _ in read(path)] == [3, 4, 6]


@pytest.mark.parametrize("header", ["text,label", "text, label"])
def test_a_quoted_field_may_stand_behind_a_space(tmp_path: Path, header: str) -> None:
    assert table(tmp_path, f'{header}\n"a, b", "x"\n"c", "y"\n') == [("a, b", "x"), ("c", "y")]


def test_fields_in_single_quotes_are_refused(tmp_path: Path) -> None:
    assert "single quotes" in refused(tmp_path, "'text','label'\n'a','x'\n")
    assert "single quotes" in refused(tmp_path, "text,label\n'a','x'\n")
    assert table(tmp_path, "text,label\n'tis fine,x\n") == [("'tis fine", "x")]


@pytest.mark.parametrize(
    "content",
    [
        "text,label,,\na,x,,\nb,y,,\n",
        "text,label,,\na,x\nb,y\n",
        "text,label\na,x,\nb,y,,\n",
        ",text,label\n0,a,x\n1,b,y\n",  # as pandas writes its index
        "text,label\ra,x\rb,y\r",
        "\ufefftext,label\na,x\n\ufefftext,label\nb,y\n",  # two files one behind the other
    ],
)
def test_what_is_unusual_is_read_all_the_same(tmp_path: Path, content: str) -> None:
    assert table(tmp_path, content) == [("a", "x"), ("b", "y")]


def test_a_row_that_is_too_short_still_has_every_column(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\nonly text\na,x\nb,y,z\ntext,label\n")
    rows = dict(read(path))
    assert rows[2] == {"text": "only text", "label": None, BROKEN: "broken"}
    assert rows[3] == {"text": "a", "label": "x"}
    assert rows[4][BROKEN] == "broken"
    assert rows[5][BROKEN] == "repeated header"


def test_a_quoted_row_of_a_tsv_is_told_apart_from_other_broken_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n"two\nlines"\tpos\nlone\na\tx\n')
    kinds = [(line, row.get(BROKEN)) for line, row in read(path)]
    assert kinds == [(2, "broken quoted"), (3, None), (4, "broken"), (5, None)]
