"""What rows look like when they are written out again."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from stillhouse.core.errors import UsageError
from stillhouse.prediction.output import Writer, check_out
from stillhouse.prediction.rows import STDIN


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("jsonl", '{"text": "größer", "raw": ["a�"], "answer": "x"}\n'),
        ("csv", 'text,raw,answer,error\ngrößer,"[""a�""]",x,\n'),
    ],
)
def test_binary_columns_are_written_as_text(form: str, expected: str) -> None:
    file = io.BytesIO()
    row = {"text": "größer".encode(), "raw": [b"a\xff"], "answer": "x"}
    Writer(file, form, ["answer"]).add(row)  # pyright: ignore[reportArgumentType]
    assert file.getvalue().decode() == expected


def test_an_output_is_compared_with_a_file_of_rows_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Standard input is no file, and ~ is the user's folder in both."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("rows.csv", "out.csv"):
        (tmp_path / name).touch()
    for rows in (STDIN, "~/rows.csv", "~/none.csv", ["good"]):
        check_out(str(tmp_path / "out.csv"), rows)
    with pytest.raises(UsageError, match="holds the rows themselves"):
        check_out(str(tmp_path / "rows.csv"), "~/rows.csv")
