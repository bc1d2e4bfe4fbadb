"""Rows of JSON files: an object a line (JSONL), or one array of objects."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stillhouse.core.errors import DataError

ROW = 'a row is an object such as {"text": ...}'


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Both forms; an array is read whole. Raises DataError."""
    yield from (_array if _is_array(path) else _lines)(path)


def _is_array(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(codecs.BOM_UTF8)
        while start and not start.strip():
            start = file.read(4096)
    return start.lstrip()[:1] == b"["


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            if raw.startswith(codecs.BOM_UTF8):  # also of a file that was put behind another
                raw = raw[len(codecs.BOM_UTF8) :]
            if not raw.strip():
                continue
            try:
                value = json.loads(raw.decode("utf-8", "surrogateescape"))
            except json.JSONDecodeError as error:
                said = error.msg
                if line == 1 and _is_object(path):
                    said = "an object goes over several lines, write one object a line (JSONL)"
                raise DataError(f"{path} line {line} is not JSON: {said}") from None
            except (ValueError, RecursionError):  # a number too long, brackets too deep
                raise DataError(f"{path} line {line} is not JSON that can be read") from None
            if not isinstance(value, dict):
                raise DataError(f"{path} line {line}: {ROW}")
            yield line, value


def _is_object(path: Path) -> bool:
    """Whether the file begins with an object that goes over several lines."""
    text = path.read_text("utf-8-sig", errors="surrogateescape").lstrip()
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "\n" in text[:end]


def _array(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(the line in which it begins, the object) of each in the array."""
    text = path.read_text("utf-8-sig", errors="surrogateescape")
    decoder, line, counted = json.JSONDecoder(), 1, 0

    def skip(at: int) -> int:
        while text[at : at + 1].isspace():
            at += 1
        return at

    def refuse(what: str) -> DataError:
        return DataError(f"{path} line {line} {what}")

    at, closed = skip(skip(0) + 1), False
    if text[at : at + 1] == "]":
        closed, at = True, skip(at + 1)
    while not closed:
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            line += text.count("\n", counted, error.pos)
            raise refuse(f"is not JSON: {error.msg}") from None
        except (ValueError, RecursionError):
            raise refuse("is not JSON that can be read") from None
        if not isinstance(value, dict):
            raise DataError(f"{path} line {line}: {ROW}")
        yield line, value
        at = skip(at)
        sign = text[at : at + 1]
        if sign not in (",", "]"):
            line += text.count("\n", counted, at)
            raise refuse("is not JSON: a comma or ] is missing after an object")
        closed, at = sign == "]", skip(at + 1)
    if at < len(text):
        line += text.count("\n", counted, at)
        raise refuse("has more after the end of the array: write one object a line (JSONL)")
