"""Somebody else's JSON, read and written again as it was: also numbers that no float holds."""

from __future__ import annotations

import json
import math
import re
import secrets
from typing import Any

DIGITS = 400  # of a whole number that is read as one


class Beyond:
    """A number that is too large, as it was written."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __float__(self) -> float:
        return math.inf

    def __str__(self) -> str:
        return self.text


def read_json(body: bytes) -> Any:
    """Raises ValueError; RecursionError where it is nested too deeply."""
    return json.loads(body, parse_float=_float, parse_int=_whole)


def write_json(value: Any) -> bytes:
    """As UTF-8; where a text has half a surrogate pair, which UTF-8 has not, as ASCII. Raises
    RecursionError."""
    beyond: list[str] = []
    place = secrets.token_hex(16)  # which no text of the value has

    def stand_in(one: object) -> str:
        if not isinstance(one, Beyond):
            raise TypeError(f"{type(one).__name__} is no JSON")
        beyond.append(one.text)
        return f"{place}{len(beyond) - 1}"

    def written(*, ascii_only: bool) -> str:
        text = json.dumps(value, ensure_ascii=ascii_only, default=stand_in)
        return re.sub(f'"{place}(\\d+)"', lambda found: beyond[int(found[1])], text)

    try:
        return written(ascii_only=False).encode()
    except UnicodeEncodeError:
        return written(ascii_only=True).encode()


def _float(text: str) -> float | Beyond:
    found = float(text)
    return found if math.isfinite(found) else Beyond(text)


def _whole(text: str) -> int | Beyond:
    return int(text) if len(text) <= DIGITS else Beyond(text)
