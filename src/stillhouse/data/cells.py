"""A cell of a table as text: one rule for every form of file, for texts and for labels."""

from __future__ import annotations

import datetime
import decimal
import enum
import json
import re
import unicodedata
from typing import Any

from stillhouse.core.errors import DataError
from stillhouse.core.folding import INVISIBLE, folded

SEVERAL_LABELS = "several labels a row: multi-label classification is not supported yet"
MISSING = ("<NA>", "NaT")  # how pandas shows what is not there
WHOLE = re.compile(r"([+-]?\d+)\.0*")  # a whole number that was stored as a float
BLANK = re.compile(rf"(?:{INVISIBLE.pattern}|[\s\u2800])+")  # U+2800: braille without a dot
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
# Characters that are not seen: they never tell two labels apart. Joiners stay, which some scripts
# and emoji are spelled with.
UNSEEN = dict.fromkeys(
    [0xAD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x206A), 0xFEFF]
)


def plain(value: Any) -> Any:
    """`value` as Python's own type: numpy's scalars and arrays, bytes (UTF-8) and members of an
    enumeration are taken out of theirs. Bytes that are not UTF-8 become lone surrogates."""
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "surrogateescape")
    if not isinstance(value, str) and hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, tuple | set | frozenset) else value


def cell_text(value: Any) -> str | None:
    """A plain value as text without the white space around it; None if there is nothing in it:
    null, NaN, NaT, or an empty text."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, decimal.Decimal):
        return None if value.is_nan() else format(value, "f")
    if isinstance(value, float) and value != value:
        return None
    if not isinstance(value, str) and str(value) in MISSING:
        return None
    is_time = isinstance(value, datetime.date | datetime.time)
    text: str = value.isoformat() if is_time else str(value)
    return text.strip() or None


def text_of(value: Any, column: str | None, option: str) -> str | None:
    """The text in a cell of `column`. Raises DataError for a list or an object; `option` says
    which column to read."""
    if isinstance(value, str):
        return seen(value)
    value = plain(value)
    if isinstance(value, dict):
        raise DataError(f"{_fields(value, column)} with {option} {column}.NAME")
    if isinstance(value, list):
        raise DataError(
            f"column {column} holds lists: join each into one text first, or name another column "
            f"with {option}"
        )
    return seen(cell_text(value) or "")


def seen(text: str) -> str | None:
    """`text` without the white space around it; None where nothing of it is to be seen."""
    found = text.strip()
    return None if not found or BLANK.fullmatch(found) else found


def label_of(value: Any, column: str | None) -> str | None:
    """The label in a cell; answers in SQuAD's form as JSON. Raises DataError for several labels,
    and for another object."""
    value = plain(value)
    if _are_answers(value):
        filled = value.get("text") if isinstance(value, dict) else value
        return json.dumps(value, ensure_ascii=False, sort_keys=True) if filled else None
    if isinstance(value, dict):
        raise DataError(f"{_fields(value, column)} with --label-column {column}.NAME")
    if isinstance(value, list):
        raise DataError(f"column {column} holds lists, {SEVERAL_LABELS}")
    text = cell_text(value)
    return tidy_label(text) if text is not None else None


def _are_answers(value: Any) -> bool:
    """Whether it has the form of SQuAD's answers: an object with their texts, or a list of such."""
    if isinstance(value, list):
        return all(isinstance(each, dict) and "text" in each for each in value)
    return isinstance(value, dict) and "text" in value


def is_answers(label: str) -> bool:
    """Whether a label has the form of SQuAD's answers."""
    return label.startswith(('{"answer_start"', '{"text"', '[{"answer_start"', '[{"text"'))


def _fields(value: dict[Any, Any], column: str | None) -> str:
    names = ", ".join(map(str, list(value)[:8])) or "nothing"
    return f"column {column} holds objects of {names}: say which of them"


def tidy_label(text: str) -> str | None:
    """A label in Unicode's composed form (NFC), without characters that are not seen."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", text.translate(UNSEEN)).strip() or None


def fold_label(label: str) -> str:
    """What labels have in common that differ in case, white space, Unicode form, or in being a
    whole number written as a float."""
    text = folded(label)
    whole = WHOLE.fullmatch(text)
    return whole.group(1) if whole else text


def has_decimal_comma(label: str) -> bool:
    """Whether it is a number as 3,5 writes three and a half."""
    return DECIMAL_COMMA.fullmatch(label) is not None


def is_utf8(*values: str | None) -> bool:
    """Whether no text holds lone surrogates, which stand for bytes that are not UTF-8."""
    try:
        for value in values:
            if value is not None:
                value.encode()
    except UnicodeEncodeError:
        return False
    return True


def value_at(row: dict[str, Any], column: str | None) -> Any:
    """The cell of a column, or of a field inside its objects: `text.body`. None if it's not there.
    Raises DataError where the column holds no objects."""
    if column is None:
        return None
    if column in row or "." not in column:
        return row.get(column)
    head, _, rest = column.partition(".")
    held = plain(row.get(head))
    if held is None:
        return None
    if not isinstance(held, dict):
        raise DataError(f"column {head} holds no objects, so there is no {column}")
    return value_at(held, rest)
