"""A new small model for users without a pretrained one: its tokenizer learnt from the training
rows, its weights drawn."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from stillhouse.core.config import NewConfig
from stillhouse.core.errors import RunError, UsageError
from stillhouse.core.manifest import manifest
from stillhouse.core.progress import Progress
from stillhouse.core.rundir import atomic_folder, write_json
from stillhouse.core.seeding import shape_seed
from stillhouse.data.chat import CHAT_TEMPLATE, Turn, answer_turn, turns_of
from stillhouse.data.documents import documents, text_files
from stillhouse.data.sources import load
from stillhouse.data.tokens import train_tokenizer
from stillhouse.flows.common import corpus_of, store_root
from stillhouse.flows.writers import is_running_text
from stillhouse.models.load import load_tokenizer
from stillhouse.models.new import new_model
from stillhouse.models.student import parameters

COUNTED = 5000  # texts whose tokens are counted


@dataclass(frozen=True)
class New:
    """What was made: parameters, entries of the vocabulary, tokens per training text (None without
    data; `texts` of them were counted)."""

    out: str
    family: str
    parameters: int
    vocabulary: int
    tokens_per_text: float | None
    texts: int

    @property
    def facts(self) -> dict[str, Any]:
        return asdict(self)


def run_new(config: NewConfig, out: Path, progress: Progress) -> New:
    """Writes a new model's folder, with its tokenizer, in one piece.

    Of the data only training rows are read: what selects and what is reported stays unseen.
    Raises UsageError where `out` is taken, DataError, ModelError for a shape there is not.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists: give another --out, or delete it")
    texts, conversations = _texts(config, progress) if config.data else (None, False)
    tokenizer = _tokenizer(config, texts, progress)
    if conversations and not tokenizer.chat_template:
        tokenizer.chat_template = CHAT_TEMPLATE
    model = new_model(
        config.task,
        tokenizer,
        family=config.family,
        width=config.width,
        layers=config.layers,
        decoder_layers=config.decoder_layers,
        ffn=config.ffn,
        heads=config.heads,
        positions=config.positions,
        dropout=config.dropout,
        seed=shape_seed(config.seed),
    )
    per_text, counted = _tokens_per_text(tokenizer, texts) if texts else (None, 0)
    found = New(
        str(out), model.config.model_type, parameters(model), len(tokenizer), per_text, counted
    )
    with atomic_folder(out, "the model") as folder:
        folder.chmod(0o755)  # a model is for others, too
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / "manifest.json", manifest(new=config.model_dump(), made=found.facts))
    if not (out / "manifest.json").exists():
        raise RunError(f"{out} was made by another meanwhile: give another --out")
    return found


def _texts(config: NewConfig, progress: Progress) -> tuple[Callable[[], Iterator[str]], bool]:
    """The training texts, from their beginning each time, and whether they are conversations.
    Raises DataError."""
    data = config.data
    assert data is not None
    if config.task == "causal_lm" and is_running_text(data):
        corpus = corpus_of(data)
        files = text_files(corpus)
        given = {"reported": corpus.reported, "held_out": corpus.held_out}
        shares = {split: share for split, share in given.items() if split not in files}

        def lines() -> Iterator[str]:
            for document in documents(files, shares, Counter(), lambda size: None):
                if document.split == "train":
                    yield document.text

        return lines, False
    splits = load(data, store_root(config.cache) / "rows", texts=True, progress=progress)
    for note in splits.notes:
        progress.note(note)

    def rows() -> Iterator[str]:
        for example, label in zip(splits.labelled, splits.labelled.labels, strict=True):
            yield from _said(example.text)
            yield from _in_turn(answer_turn(str(label)))

    first = next(iter(splits.labelled), None)
    return rows, first is not None and turns_of(first.text) is not None


def _said(text: str) -> Iterator[str]:
    """A text; of a conversation what is said in it, and its tools."""
    found = turns_of(text)
    if found is None:
        yield text
        return
    for turn in found.turns:
        yield from _in_turn(turn)
    if found.tools:
        yield json.dumps(found.tools, ensure_ascii=False)


def _in_turn(turn: Turn) -> Iterator[str]:
    """A turn's words, and the calls in it."""
    yield turn["content"]
    if calls := turn.get("tool_calls"):
        yield json.dumps(calls, ensure_ascii=False)


def _tokenizer(
    config: NewConfig, texts: Callable[[], Iterator[str]] | None, progress: Progress
) -> PreTrainedTokenizerBase:
    if config.tokenizer_from is not None:
        return load_tokenizer(config.tokenizer_from)
    assert texts is not None
    with progress.stage("learning a tokenizer", 1, "tokenizers") as advance:
        found = train_tokenizer(
            texts(), kind=config.tokenizer, size=config.vocabulary, task=config.task
        )
        advance(1)
    found.model_max_length = config.positions
    return found


def _tokens_per_text(
    tokenizer: PreTrainedTokenizerBase, texts: Callable[[], Iterator[str]]
) -> tuple[float, int]:
    """Mean tokens of the first training texts, special ones too, and how many were counted."""
    some = list(islice(texts(), COUNTED))
    coded: Any = tokenizer(some, verbose=False)
    lengths = [len(ids) for ids in coded["input_ids"]]
    return sum(lengths) / max(1, len(lengths)), len(lengths)
