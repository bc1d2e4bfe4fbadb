"""What rows look like when they are written out again."""

from __future__ import annotations

import io

import pytest

from stillhouse.prediction.output import Writer


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
