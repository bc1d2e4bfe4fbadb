"""Which texts are asked about: those that a database keeps and that are folded soon."""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import cache

ACCENTS = 30  # combining characters in a row, as in Unicode's stream-safe form


def is_text(text: str) -> bool:
    """Whether a database keeps it, no NUL and no half of a surrogate pair, and folding it takes no
    long: Unicode's stream-safe form."""
    try:
        whole = b"\x00" not in text.encode()
    except UnicodeEncodeError:
        return False
    return whole and (text.isascii() or not _stacked().search(text))


@cache
def _stacked() -> re.Pattern[str]:
    """More combining characters in a row than are allowed. A pattern, because a loop over the
    characters of a full request would take half a second."""
    accents = (code for code in range(sys.maxunicode + 1) if unicodedata.combining(chr(code)))
    spans: list[list[int]] = []
    for code in accents:
        if spans and spans[-1][1] == code - 1:
            spans[-1][1] = code
        else:
            spans.append([code, code])
    inside = "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in spans)
    return re.compile(f"[{inside}]{{{ACCENTS + 1}}}")
