"""The words of folded texts as numbers, to compare texts by what they say.

A word is a run of letters, a number (one is like another), or one character of a script that
writes no spaces; marks between them are none. Axes: W words of all texts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from itertools import chain

import numpy as np

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
WORD = re.compile(rf"\d+|[{_UNSPACED}]|[^\W\d{_UNSPACED}]+")
MOST = 1 << 20  # words whose numbers are remembered: bounds the memory
MIX = np.uint64(0x9E3779B97F4A7C15)


class _Numbers(dict[str, int]):
    """64 bits for each word, the same in every process."""

    def __missing__(self, word: str) -> int:
        if len(self) >= MOST:
            self.clear()
        same = "0" if word[:1].isdecimal() else word
        digest = hashlib.blake2b(same.encode(errors="surrogatepass"), digest_size=8).digest()
        return self.setdefault(word, int.from_bytes(digest, "little"))


_numbers = _Numbers()


def word_hashes(texts: Iterable[str], *, most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(a number for each word of all texts (W), where each text begins, and the end). Of a text
    only its first `most` words; one without any word is a word of its own."""
    words = [(WORD.findall(text) or [text])[:most] for text in texts]
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in words], dtype=np.int64)])
    numbers = map(_numbers.__getitem__, chain.from_iterable(words))
    return np.fromiter(numbers, np.uint64, int(offsets[-1])), offsets


def ngrams(hashes_W: np.ndarray, length: int) -> np.ndarray:
    """A number for the `length` words that begin at each word (W - length + 1)."""
    count = max(len(hashes_W) - length + 1, 0)
    found = np.zeros(count, np.uint64)
    with np.errstate(over="ignore"):
        for i in range(length):
            found = (found ^ (found >> np.uint64(29))) * MIX + hashes_W[i : i + count]
    return found
