"""Texts and the answers to be written to them, as token ids on disk, memory-mapped.

For an encoder-decoder a source and a target; for a language model one sequence, prompt and answer,
of which only the answer's tokens are scored (of a conversation all that the assistant said).

Axes: N rows, B examples, T tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from stillhouse.core.errors import DataError
from stillhouse.core.rundir import atomic_folder
from stillhouse.core.types import Example
from stillhouse.data.chat import ANSWER, turns_of
from stillhouse.data.encoding import CHUNK, tokens_identity
from stillhouse.data.shown import Ids, answer_text, conversation, named
from stillhouse.data.sources import Pool

Kind = Literal["seq2seq", "causal_lm"]
Where = Callable[[int], str]  # the file and line of a row
FORMAT = 3


class Ragged:
    """Rows of different length, flat."""

    def __init__(self, flat: np.ndarray, offsets: np.ndarray) -> None:
        self.flat, self.offsets = flat, offsets
        self.lengths: np.ndarray = np.diff(offsets)

    @classmethod
    def open(cls, folder: Path, name: str) -> Ragged:
        """Those on disk."""
        offsets, path = np.load(folder / f"{name}.npy"), folder / f"{name}.bin"
        empty = not offsets[-1]  # which can't be mapped
        return cls(np.empty(0, "<i4") if empty else np.memmap(path, "<i4", mode="r"), offsets)

    def take(self, rows: np.ndarray) -> Ragged:
        """Some of the rows, in memory."""
        flat = np.concatenate([np.empty(0, "<i4"), *(self[row] for row in rows)])
        return Ragged(flat, np.concatenate([[0], np.cumsum(self.lengths[rows])]))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int | np.integer) -> np.ndarray:
        return self.flat[self.offsets[row] : self.offsets[row + 1]]


class _Writer:
    def __init__(self, folder: Path, name: str, stack: ExitStack) -> None:
        self._file = stack.enter_context((folder / f"{name}.bin").open("wb"))
        self._folder, self._name, self._lengths = folder, name, [0]

    def add(self, values: Sequence[int]) -> None:
        self._file.write(np.asarray(values, "<i4").tobytes())
        self._lengths.append(len(values))

    def close(self) -> None:
        np.save(self._folder / f"{self._name}.npy", np.cumsum(np.array(self._lengths, np.int64)))


@dataclass(frozen=True)
class Rules:
    """How rows become tokens. `source` and `target`: the most tokens of each; of a language model
    `source` is of prompt and answer together, `target` (at most half of it) what is kept free
    for an answer."""

    kind: Kind
    source: int
    target: int
    separator: str = "\n"


@dataclass(frozen=True)
class Tokens:
    """Rows in one tokenizer's ids. `before`: sources (an encoder-decoder's), or prompts alone;
    `ids`: targets, or prompts with answers; `scored`: 1 at each of the latter's tokens that is to
    be predicted. `cut`: rows that were too long."""

    before: Ragged
    ids: Ragged
    scored: Ragged
    cut: int

    def take(self, rows: np.ndarray) -> Tokens:
        """Some of the rows."""
        return Tokens(self.before.take(rows), self.ids.take(rows), self.scored.take(rows), self.cut)


def tokens_of(
    pool: Pool,
    tokenizer: PreTrainedTokenizerBase,
    store: Path,
    rules: Rules,
    *,
    answers: Sequence[str | None] | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Tokens:
    """The pool's rows in tokens, from disk if they were made before; with `answers`, these are
    written instead of the pool's own labels. A row without an answer has nothing to score.

    Raises DataError for a tokenizer without an end-of-text token, or conversations without a
    template for them.
    """
    held = pool.labels.tolist() if answers is None else list(answers)
    digest = hashlib.blake2b(repr((FORMAT, rules, held)).encode(), digest_size=12)
    name = f"{pool.fingerprint}-{tokens_identity(tokenizer)}-{digest.hexdigest()}"
    folder = store / name
    if (folder / "cut.npy").exists():
        progress(len(pool))
    else:
        with atomic_folder(folder, "tokens") as temporary:
            _write(temporary, pool, held, tokenizer, rules, progress)
    parts = (Ragged.open(folder, part) for part in ("before", "ids", "scored"))
    return Tokens(*parts, cut=int(np.load(folder / "cut.npy")))


def _write(
    folder: Path,
    pool: Pool,
    answers: list[str | None],
    tokenizer: PreTrainedTokenizerBase,
    rules: Rules,
    progress: Callable[[int], None],
) -> None:
    make = _pairs if rules.kind == "seq2seq" else _continued
    rows, at, cut = iter(pool), 0, 0
    with ExitStack() as stack:
        writers = [_Writer(folder, name, stack) for name in ("before", "ids", "scored")]
        while chunk := list(islice(rows, CHUNK)):
            held, where = answers[at : at + len(chunk)], _places(pool, at)
            for *found, long in make(chunk, held, tokenizer, rules, where):
                for writer, values in zip(writers, found, strict=True):
                    writer.add(values)
                cut += long
            at += len(chunk)
            progress(len(chunk))
        for writer in writers:
            writer.close()
    np.save(folder / "cut.npy", cut)


def _places(pool: Pool, first: int) -> Where:
    """Names rows of a chunk that begins with row `first`."""
    return lambda row: pool.place(first + row)


def gold_texts(pool: Pool, tokenizer: PreTrainedTokenizerBase) -> list[str | None]:
    """What a model is to write to each row, as `decode` gives it back: an answer's words; of one
    that calls tools, what the chat template shows of it. None where there is no answer."""
    found: list[str | None] = pool.labels.tolist()
    more = [row for row, answer in enumerate(found) if answer and answer.startswith(ANSWER)]
    for row, example in zip(more, pool.at(np.array(more, np.int64)), strict=True):
        said, answer = turns_of(example.text), found[row]
        if said is not None and answer is not None:
            with named(lambda row=row: pool.place(row)):
                found[row] = answer_text(said, answer, tokenizer)
    return found


def end_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that ends a text. Raises DataError where there is none."""
    if not isinstance(tokenizer.eos_token_id, int):
        raise DataError(
            "the tokenizer has no end-of-text token (eos_token): a model that writes needs one"
        )
    return tokenizer.eos_token_id


def _pairs(
    chunk: Sequence[Example],
    answers: Sequence[str | None],
    tokenizer: Any,
    rules: Rules,
    where: Where,
) -> Iterator[tuple[Ids, Ids, Ids, bool]]:
    """Source, target, ones, and whether either was cut."""
    del where  # every text can be read
    end = end_of(tokenizer)
    sources = tokenizer([_plain(each.text) for each in chunk])["input_ids"]
    targets = tokenizer(text_target=[answer or "" for answer in answers])["input_ids"]
    for source, target, answer in zip(sources, targets, answers, strict=True):
        target = [] if answer is None else target if target[-1:] == [end] else [*target, end]
        long = len(source) > rules.source or len(target) > rules.target
        if len(source) > rules.source:  # an encoder expects its last token where it has one
            source = source[: rules.source - 1] + source[-1:]
        target = target[: rules.target]
        yield source, target, [1] * len(target), long


def prompts_of(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, rules: Rules
) -> Iterator[tuple[Ids, bool]]:
    """What is written to, of rows without answers: sources or prompts, and whether each was cut."""
    make = _pairs if rules.kind == "seq2seq" else _continued
    where: Where = lambda row: f"row {row + 1}"  # noqa: E731
    for before, _, _, long in make(examples, [None] * len(examples), tokenizer, rules, where):
        yield before, long


def _plain(text: str) -> str:
    if turns_of(text) is not None:
        raise DataError("conversations are for language models: distil them with --task causal_lm")
    return text


def _continued(
    chunk: Sequence[Example],
    answers: Sequence[str | None],
    tokenizer: Any,
    rules: Rules,
    where: Where = lambda row: f"row {row + 1}",
) -> Iterator[tuple[Ids, Ids, Ids, bool]]:
    """Prompt alone, prompt and answer, where the answer's tokens are, and whether it was cut."""
    end, first = end_of(tokenizer), beginning(tokenizer)
    for row, (example, answer) in enumerate(zip(chunk, answers, strict=True)):
        said = turns_of(example.text)
        if said is not None:
            with named(lambda row=row: where(row)):
                before, ids, scored = conversation(said, answer, tokenizer)
        else:
            prompt = tokenizer(example.text + rules.separator, add_special_tokens=False)
            before = [*first, *prompt["input_ids"]]
            words = (
                [] if answer is None else tokenizer(answer, add_special_tokens=False)["input_ids"]
            )
            ids = before if answer is None else [*before, *words, end]
            scored = [0] * len(before) + [1] * (len(ids) - len(before))
        yield _cut(before, ids, scored, rules)


def _cut(before: Ids, ids: Ids, scored: Ids, rules: Rules) -> tuple[Ids, Ids, Ids, bool]:
    """A prompt that is too long loses its beginning, so that there is room for an answer."""
    room = min(rules.target, rules.source // 2)
    over = max(0, min(len(before) - (rules.source - room), len(ids) - rules.source))
    long = len(before) > rules.source - room or len(ids) > rules.source
    kept = slice(over, over + rules.source)
    return before[-(rules.source - room) :], ids[kept], scored[kept], long


def beginning(tokenizer: Any) -> Ids:
    """What a tokenizer puts before a text: its begin-of-text token, or nothing."""
    made = tokenizer("")["input_ids"]
    return made[:1] if made and made[0] == tokenizer.bos_token_id else []
