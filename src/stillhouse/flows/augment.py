"""Rows for a teacher to answer, made from those there are: TinyBERT's augmentation, done once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.core.config import AugmentConfig
from stillhouse.core.errors import DataError
from stillhouse.core.precision import precision_of
from stillhouse.core.progress import Advance, Progress, Silent
from stillhouse.core.rundir import atomic
from stillhouse.core.types import Example
from stillhouse.data.augment import (
    STOP_WORDS,
    Candidates,
    Tally,
    augment_rows,
    first_of,
    is_word,
)
from stillhouse.data.columns import Columns
from stillhouse.data.documents import file_digest
from stillhouse.data.encoding import tokenizer_fingerprint
from stillhouse.data.neighbours import Neighbours, read_vectors
from stillhouse.data.readers import Row
from stillhouse.data.rows import FORMAT, Rows, ingest
from stillhouse.data.sources import Pool
from stillhouse.models.limits import check_tokenizer, max_tokens
from stillhouse.models.load import fingerprint, folder_fingerprint, load_tokenizer
from stillhouse.models.masked import load_masked_lm
from stillhouse.models.vocabulary import MaskedGuesses, embedding_words

METHOD = 1  # of what is drawn and kept: rows made by another one are made anew
MADE = "augmented rows"
CONTEXT = 512  # the most tokens that a masked language model reads of a row


def augmented(
    pool: Pool,
    config: AugmentConfig,
    *,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    store: Path,
    forbidden_N2: np.ndarray,
    stop_words: Collection[str] = STOP_WORDS,
    progress: Progress | None = None,
) -> Rows:
    """Variants of the pool's rows, without labels, kept under `store` and found again there.

    None of them has a folded key among `forbidden_N2` (rows held out or reported) or of the pool
    itself. Raises DataError where no variant is left.
    """
    progress = progress or Silent()
    avoided_N2 = np.unique(np.concatenate([forbidden_N2, pool.folded_N2]), axis=0)
    own = config.model_dump(exclude={"model", "vectors", "precision"})
    identity = [METHOD, FORMAT, pool.fingerprint, own]
    identity += [hashlib.blake2b(avoided_N2.tobytes()).hexdigest(), sorted(stop_words)]
    if config.vectors is None:
        identity += [fingerprint(teacher), tokenizer_fingerprint(tokenizer)]
    else:
        identity += [file_digest(Path(config.vectors))]
    if config.model is not None:
        identity += [folder_fingerprint(config.model), precision_of(config.precision)]
    key = hashlib.blake2b(repr(identity).encode(), digest_size=16).hexdigest()
    folder = store / "augmented" / key
    has_pair = bool(len(pool)) and next(iter(pool)).pair is not None
    columns = Columns("text", "pair" if has_pair else None)
    if (folder / "summary.json").exists():
        return Rows(folder, MADE)
    tally = Tally()
    with progress.stage("augmenting", len(pool), "rows") as advance:
        candidates = _candidates(config, teacher, tokenizer)
        variants = augment_rows(
            _advancing(pool, advance),
            candidates,
            config,
            forbidden_N2=avoided_N2,
            stop_words=stop_words,
            tally=tally,
        )
        first = next(variants, None)
        if first is None:
            raise DataError(
                f"augmentation made no new row of {len(pool)}: none of their words has a "
                f"candidate, or too few are replaced (share {config.share})"
            )
        source = _numbered(chain([first], variants))
        rows = ingest(source, MADE, columns, folder, labelled=False)
    progress.note(
        f"{tally.made:,} augmented rows of {len(pool):,}; left out: {tally.repeated:,} equal to "
        f"their row or to another copy of it, {tally.forbidden:,} equal to another row"
    )
    return rows


def write_rows(rows: Rows, path: Path) -> int:
    """How many rows `path` got: JSONL with text, and pair where rows have one."""
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for example in rows.examples(rows.kept):
            file.write(json.dumps(_fields(example), ensure_ascii=False) + "\n")
    return len(rows.kept)


def _candidates(
    config: AugmentConfig,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> Candidates:
    """A masked language model's guesses where there is one, else and for the others neighbours."""
    if config.vectors is None:
        table = embedding_words(teacher, tokenizer, is_word)
        near = Neighbours(table.words, table.vectors_WH, config.candidates, lookup=table.lookup)
    else:
        near = Neighbours(*read_vectors(Path(config.vectors)), config.candidates)
    if config.model is None:
        return near
    masked, own = load_masked_lm(config.model), load_tokenizer(config.model)
    check_tokenizer(masked, own)
    guesses = MaskedGuesses(
        masked.to(next(teacher.parameters()).device),  # pyright: ignore[reportArgumentType]
        own,
        candidates=config.candidates,
        max_length=max_tokens(masked, min(CONTEXT, own.model_max_length)),
        is_word=is_word,
        precision=config.precision,
    )
    return first_of(guesses, near)


def _advancing(pool: Pool, advance: Advance) -> Iterator[Example]:
    """The pool's rows; each counts once the next is asked for."""
    for example in pool:
        yield example
        advance(1)


def _fields(example: Example) -> dict[str, str]:
    return {"text": example.text} | ({} if example.pair is None else {"pair": example.pair})


def _numbered(examples: Iterable[Example]) -> Iterator[Row]:
    for number, example in enumerate(examples, 1):
        yield number, dict(_fields(example))
