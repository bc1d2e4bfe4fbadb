"""What two texts have in common that nobody tells apart: Unicode form, case, white space, and
characters that are not seen. Splits, leaks and the guard's marks all go by this one."""

from __future__ import annotations

import re
import unicodedata

# What Unicode calls default-ignorable, the marks around annotations, and control characters that
# are no white space: each is there, and nobody sees it.
INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f"
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"
)


def folded(text: str, *, most: int | None = None) -> str:
    """`text` without case, Unicode form, invisible characters, and white space but single spaces.

    Unicode's compatibility caseless matching (The Unicode Standard, D146), and past it i with a dot
    or without is one letter, as its capital does not tell. A text of more than `most` characters
    is brought to one Unicode form in its first ones only, as a character may stand for eighteen:
    the time stays within bounds.
    """
    if text.isascii():
        return _spaced(INVISIBLE.sub("", text).lower())
    if most is not None and len(text) > most:
        plain = _spaced(INVISIBLE.sub("", text).casefold())
        return _spaced(_caseless(plain[:most]) + plain[most:])
    return _spaced(_caseless(text))


def _caseless(text: str) -> str:
    before = None
    while text != before:  # one form may make another possible
        before = text
        text = unicodedata.normalize("NFKD", INVISIBLE.sub("", text)).casefold()
        text = text.replace("i\u0307", "i").replace("\u0131", "i")
    return unicodedata.normalize("NFKC", text).casefold()


def _spaced(text: str) -> str:
    return " ".join(text.split())
