"""Data of models that write: rows and running text whose scored rows are tokens to be predicted.

Axes: N scored tokens, B examples, T tokens, E examples of the data set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stillhouse.core.types import Batch
from stillhouse.data.corpus import Blocks
from stillhouse.data.encoding import pad_id, padded
from stillhouse.data.written import Kind, Tokens
from stillhouse.models.generator import used_choices

ANY = 1 << 30  # tokens: no limit


@dataclass(frozen=True)
class Written:
    """Rows in one tokenizer's ids. `start`: what an encoder-decoder's target is preceded by.
    `answers`: the gold texts, None where a row has none."""

    kind: Kind
    tokens: Tokens
    tokenizer: PreTrainedTokenizerBase
    answers: Sequence[str | None]
    start: int | None = None

    def __len__(self) -> int:
        return len(self.tokens.ids)

    @property
    def lengths(self) -> np.ndarray:
        return self._lengths

    @cached_property
    def _lengths(self) -> np.ndarray:
        own_E = self.tokens.ids.lengths
        return np.maximum(own_E + self.tokens.before.lengths if self.pairs else own_E, 1)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest text on either side: models have so many positions, and may have
        no more."""
        return int(
            max(part.lengths.max(initial=1) for part in (self.tokens.before, self.tokens.ids))
        )

    @cached_property
    def width(self) -> int:
        """How many ids the tokenizer can give."""
        return used_choices(self.tokenizer)

    @property
    def pairs(self) -> bool:
        return self.kind == "seq2seq"

    @property
    def keys_N2(self) -> np.ndarray:
        """E x 2: stand for the tokens of each example and which of them are scored."""
        return self._keys_N2

    @cached_property
    def _keys_N2(self) -> np.ndarray:
        found = bytearray()
        for row in range(len(self)):
            digest = hashlib.blake2b(self.tokens.before[row].tobytes(), digest_size=16)
            digest.update(b"\x1f" + self.tokens.ids[row].tobytes())
            digest.update(b"\x1f" + self.tokens.scored[row].tobytes())
            found += digest.digest()
        return np.frombuffer(bytes(found), "<u8").reshape(-1, 2)

    def batch(self, rows: np.ndarray, rng: np.random.Generator | None = None) -> Batch:
        del rng  # nothing is drawn
        ids = [np.asarray(self.tokens.ids[row]) for row in rows]
        pad = pad_id(self.tokenizer)
        if not self.pairs:
            scored = [np.asarray(self.tokens.scored[row]).astype(bool) for row in rows]
            return continued(ids, scored, rows, pad=pad, most=self.longest)
        before = [np.asarray(self.tokens.before[row]) for row in rows]
        assert self.start is not None, "an encoder-decoder says what its targets begin with"
        return translated(before, ids, rows, pad=pad, start=self.start, most=self.longest)

    @cached_property
    def counts_E(self) -> np.ndarray:
        """Scored tokens of each example."""
        scored, offsets = self.tokens.scored, self.tokens.scored.offsets
        sums = np.concatenate([[0], np.cumsum(np.asarray(scored.flat))])
        found_E = sums[offsets[1:]] - sums[offsets[:-1]]
        if not self.pairs and len(scored.flat):  # nothing predicts the first token of a text
            firsts = np.minimum(offsets[:-1], len(scored.flat) - 1)
            found_E = found_E - (np.asarray(scored.flat)[firsts] * (scored.lengths > 0))
        return found_E

    def scored_counts(self, rows: np.ndarray) -> np.ndarray:
        """Scored tokens of the examples at `rows`."""
        return self.counts_E[rows]

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.counts_E)])

    def places(self, rows: np.ndarray) -> np.ndarray:
        return ranges(self._starts, rows)

    @property
    def gold_N(self) -> Tensor:
        return self._gold_N

    @cached_property
    def _gold_N(self) -> Tensor:
        flags = np.asarray(self.tokens.scored.flat).astype(bool)
        if not self.pairs and len(flags):
            flags = flags.copy()
            firsts = self.tokens.scored.offsets[:-1][self.tokens.scored.lengths > 0]
            flags[firsts] = False
        return torch.from_numpy(np.asarray(self.tokens.ids.flat)[flags].astype(np.int64))

    def take(self, rows: np.ndarray) -> Written:
        """The examples at `rows`."""
        answers = [self.answers[row] for row in rows]
        return replace(self, tokens=self.tokens.take(rows), answers=answers)

    def rewritten(self, rows: np.ndarray, texts: Sequence[np.ndarray]) -> Batch:
        """The examples at `rows` with other texts, all of which is scored."""
        pad, before = pad_id(self.tokenizer), self.prompts(rows)
        if self.pairs:
            assert self.start is not None
            return translated(before, texts, rows, pad=pad, start=self.start, most=self.longest)
        ids = [np.concatenate(both) for both in zip(before, texts, strict=True)]
        scored = [np.arange(len(i)) >= len(b) for i, b in zip(ids, before, strict=True)]
        return continued(ids, scored, rows, pad=pad, most=self.longest)

    def prompts(self, rows: np.ndarray) -> list[np.ndarray]:
        """What each answer is written to: sources, or prompts."""
        return [np.asarray(self.tokens.before[row]) for row in rows]


class RunningText:
    """Blocks of running text, all of whose tokens but the first are predicted."""

    def __init__(self, blocks: Blocks, tokenizer: PreTrainedTokenizerBase) -> None:
        self._blocks, self.tokenizer = blocks, tokenizer

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def lengths(self) -> np.ndarray:
        return self._blocks.lengths

    @property
    def keys_N2(self) -> np.ndarray:
        return self._blocks.keys_N2

    def batch(self, rows: np.ndarray, rng: np.random.Generator | None = None) -> Batch:
        del rng  # nothing is drawn
        inputs = self._blocks.inputs(rows)
        ids_BT, real_BT = inputs["input_ids"], inputs["attention_mask"].bool()
        inputs = {"input_ids": ids_BT, "attention_mask": inputs["attention_mask"]}
        places, gold_N = _next_tokens(ids_BT, real_BT)
        return Batch(inputs, rows, gold_N, places)

    def scored_counts(self, rows: np.ndarray) -> np.ndarray:
        return self.lengths[rows] - 1

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.lengths - 1)])

    def places(self, rows: np.ndarray) -> np.ndarray:
        return ranges(self._starts, rows)

    @property
    def gold_N(self) -> Tensor:
        return self._gold_N

    @cached_property
    def _gold_N(self) -> Tensor:
        found = [torch.empty(0, dtype=torch.long)]
        for row in range(len(self)):
            gold_N = self.batch(np.array([row])).gold_N
            assert gold_N is not None
            found.append(gold_N)
        return torch.cat(found)


def ranges(starts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """All positions from starts[row] to starts[row + 1], row after row."""
    counts = starts[rows + 1] - starts[rows]
    ends = np.cumsum(counts)
    inside = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
    return np.repeat(starts[rows], counts) + inside


def translated(
    sources: Sequence[np.ndarray], targets: Sequence[np.ndarray], rows: np.ndarray, *, pad: int,
    start: int, most: int = ANY,
) -> Batch:  # fmt: skip
    """An encoder-decoder's batch: at each place of a target its own token is to be predicted,
    from those before it. What fills it up goes to no more than `most` tokens."""
    inputs = _filled(sources, pad, most)
    shifted = [np.concatenate([[start], target[:-1]]) for target in targets]
    shifted = [row[: len(target)] for row, target in zip(shifted, targets, strict=True)]
    behind = _filled([row if len(row) else np.array([start]) for row in shifted], pad, most)
    inputs["decoder_input_ids"] = behind["input_ids"]
    width = behind["input_ids"].shape[1]
    lengths = np.fromiter(map(len, targets), np.int64, len(targets))
    places = np.concatenate([i * width + np.arange(n) for i, n in enumerate(lengths)])
    gold = np.concatenate([np.empty(0, np.int64), *targets]).astype(np.int64)
    return Batch(inputs, rows, torch.from_numpy(gold), torch.from_numpy(places.astype(np.int64)))


def continued(
    ids: Sequence[np.ndarray], scored: Sequence[np.ndarray], rows: np.ndarray, *, pad: int,
    most: int = ANY,
) -> Batch:  # fmt: skip
    """A language model's batch: at the place before each scored token, that token. What fills it
    up goes to no more than `most` tokens."""
    inputs = _filled([row if len(row) else np.array([pad]) for row in ids], pad, most)
    flags = np.zeros(inputs["input_ids"].shape, bool)
    for i, row in enumerate(scored):
        flags[i, : len(row)] = row
    places, gold_N = _next_tokens(inputs["input_ids"], torch.from_numpy(flags))
    return Batch(inputs, rows, gold_N, places)


def _filled(ids: Sequence[np.ndarray], pad: int, most: int) -> dict[str, Tensor]:
    return padded(ids, np.zeros(len(ids), np.int64), pad=pad, types=False, max_length=most)


def _next_tokens(ids_BT: Tensor, scored_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The places (flat in B x T) before scored tokens, and these tokens."""
    width = ids_BT.shape[1]
    at = scored_BT[:, 1:].nonzero()
    return at[:, 0] * width + at[:, 1], ids_BT[at[:, 0], at[:, 1] + 1]
