"""What a model reads of a question, in the form that marks are drawn from.

Two forms of a question that the tokenizer turns into the same ids are one question, and so are
forms that a model hardly tells apart: other case, punctuation, order or repetition of the same
words. Their content is one, so they share a decision: nobody finds a mark by asking both. It is a
function of the ids after truncation: what is cut off, or is never read, changes nothing.

Axes: T tokens of a row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.core.folding import folded
from stillhouse.core.types import Example

FOLDED = 1 << 15  # characters of a text that are brought to one Unicode form: bounds the time
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Reading:
    """What a model reads of one question. content: the words, each once, in alphabetical order; of
    two texts a line each. tokens: how many it reads, all windows together."""

    content: str
    tokens: int


Reads = Callable[[Sequence[Example]], Sequence[Reading]]


@dataclass(frozen=True, eq=False)
class TokenRow:
    """A row of token ids, and where its second text begins (its length where there is none)."""

    ids_T: np.ndarray
    second: int


def words(text: str) -> str:
    """The words of a text, each once, in alphabetical order; what has none as it is."""
    seen = folded(text, most=FOLDED)
    return " ".join(sorted(set(WORD.findall(seen)))) or seen.replace(" ", "")


def as_written(example: Example) -> Reading:
    """For a service whose model is not known: by its characters, a token for every four."""
    pair = example.pair
    content = words(example.text) if pair is None else f"{words(example.text)}\n{words(pair)}"
    return Reading(content, guess(example))


def guess(example: Example) -> int:
    """About how many tokens a question has: a quarter of its characters."""
    return 1 + (len(example.text) + len(example.pair or "")) // 4


def reading_of(rows: Iterable[TokenRow], tokenizer: Any) -> Reading:
    """Of all rows (windows) of one question."""
    rows = list(rows)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    sides: list[str] = []
    for first in (True, False):
        read = [
            tokenizer.decode([each for each in ids if each not in special])
            for row in rows
            if (ids := (row.ids_T[: row.second] if first else row.ids_T[row.second :]).tolist())
        ]
        if first or read:
            sides.append(words(" ".join(read)))
    tokens = sum(len(row.ids_T) for row in rows)
    if not any(sides):  # nothing of it can be written: then by the ids themselves
        sides = [" ".join(f"#{each}" for row in rows for each in row.ids_T.tolist())]
    return Reading("\n".join(sides), tokens)


class TokenizerReads:
    """What a model in a folder reads, by its tokenizer alone: for the middleware, in front of a
    service that has the model. max_length: tokens that are read of a question. Raises ModelError.
    """

    def __init__(
        self, folder: str | Path, *, max_length: int = 128, trust_remote_code: bool = False
    ) -> None:
        from stillhouse.models.load import load_tokenizer  # the registry needs no model's libraries

        self._tokenizer = load_tokenizer(str(folder), trust_remote_code=trust_remote_code)
        self._length = max_length

    def __call__(self, examples: Sequence[Example]) -> list[Reading]:
        from stillhouse.data.encoding import token_rows

        found: list[Reading] = []
        for each in examples:
            (ids_T,), (second,) = token_rows([each], self._tokenizer, max_length=self._length)
            found.append(reading_of([TokenRow(ids_T, second)], self._tokenizer))
        return found
