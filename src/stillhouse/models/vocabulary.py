"""Words out of a model's vocabulary: its input embeddings as word vectors, and a masked language
model's guesses of what could stand in a word's place.

Axes: B masked texts, T tokens, H hidden, W whole words of the vocabulary, Q words asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.core.errors import ModelError, RunError
from stillhouse.core.precision import precision_of
from stillhouse.core.terms import Precision
from stillhouse.core.types import Example
from stillhouse.models.masked import check_family, vocabulary_scores

Place = tuple[int, int, int]  # a word: in which text (1: the pair), its first character, its end
IsWord = Callable[[str], bool]
MAX_TOKENS = 8192


def whole_words(
    tokenizer: PreTrainedTokenizerBase, is_word: IsWord = str.isalpha
) -> tuple[np.ndarray, list[str]]:
    """Ids of the pieces that are whole words, rising, and the words.

    WordPiece: pieces without the mark of a continuation. Byte-level BPE and SentencePiece: those
    with the mark of a space before them, which an earlier piece of a word never has.
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]  # pyright: ignore
    vocabulary, special = tokenizer.get_vocab(), set(tokenizer.all_special_ids)
    pieces = sorted((i, piece) for piece, i in vocabulary.items() if i not in special)
    if model["type"] == "WordPiece":
        mark = model["continuing_subword_prefix"]
        words = [(i, piece) for i, piece in pieces if not piece.startswith(mark)]
    else:
        start = _space_mark(vocabulary)
        text: Any = tokenizer.convert_tokens_to_string
        words = [(i, text([piece]).strip()) for i, piece in pieces if piece.startswith(start)]
    found = [(i, word) for i, word in words if word and is_word(word)]
    return np.array([i for i, _ in found], np.int64), [word for _, word in found]


def _space_mark(vocabulary: dict[str, int]) -> str:
    marks = ("Ġ", "▁")
    return max(marks, key=lambda mark: sum(piece.startswith(mark) for piece in vocabulary))


@dataclass(frozen=True)
class WordVectors:
    """A model's input embeddings as vectors of words: `words` are its whole-word pieces; others
    are looked up by the mean of their pieces' vectors."""

    words: list[str]
    vectors_WH: np.ndarray
    embeddings_VH: np.ndarray
    tokenizer: PreTrainedTokenizerBase
    before: str  # what stands before a word inside a text, where its pieces depend on that

    def lookup(self, words: Sequence[str]) -> np.ndarray:
        """Q x H; zeros for a word with a piece that the tokenizer does not know."""
        coded: Any = self.tokenizer(
            [self.before + word for word in words], add_special_tokens=False, truncation=False
        )
        found_QH = np.zeros((len(words), self.embeddings_VH.shape[1]), np.float32)
        for row, ids in enumerate(coded["input_ids"]):
            if ids and self.tokenizer.unk_token_id not in ids:
                found_QH[row] = self.embeddings_VH[ids].mean(0)
        return found_QH


def embedding_words(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, is_word: IsWord = str.isalpha
) -> WordVectors:
    """The words that a model's own input embeddings hold."""
    weight: Any = model.get_input_embeddings().weight
    embeddings_VH = weight.detach().float().cpu().numpy()
    ids, words = whole_words(tokenizer, is_word)
    before = " " if _space_mark(tokenizer.get_vocab()) == "Ġ" else ""
    return WordVectors(words, embeddings_VH[ids], embeddings_VH, tokenizer, before)


@dataclass(frozen=True)
class _Asked:
    """A word that is one piece of its row: where it came from, where it is."""

    example: int
    place: int
    position: int
    word: str


class MaskedGuesses:
    """A masked language model's best guesses for a word of one piece: with the mask token in its
    place, the best `candidates` whole words other than it. None for a word of several pieces, an
    unknown one, or one past `max_length` tokens. Of a pair, the other text is context too.

    The head is applied in float32, whatever the precision of the encoder.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        candidates: int,
        max_length: int,
        is_word: IsWord = str.isalpha,
        precision: Precision = "auto",
        batch_size: int = 64,
    ) -> None:
        check_family(model.config)
        if not isinstance(tokenizer.mask_token_id, int):
            raise ModelError("augmentation by a masked language model needs a mask token")
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.candidates, self.max_length = candidates, max_length
        self.precision, self.batch_size = precision_of(precision), batch_size
        self._device = next(model.parameters()).device
        self._ids_W, self._words = whole_words(tokenizer, is_word)
        if not self._words:
            raise ModelError("no piece of the tokenizer's vocabulary is a whole word")
        self._on_device_W = torch.from_numpy(self._ids_W).to(self._device)

    def __call__(
        self, examples: Sequence[Example], places: Sequence[Sequence[Place]]
    ) -> list[list[list[str]]]:
        found: list[list[list[str]]] = [[[] for _ in here] for here in places]
        if not any(map(len, places)):
            return found
        pairs = [e.pair or "" for e in examples] if examples[0].pair is not None else None
        coded = self.tokenizer(
            [example.text for example in examples],
            pairs,
            truncation=True,
            max_length=self.max_length,
            return_offsets_mapping=True,
        )
        asked = [
            each
            for row, (example, here) in enumerate(zip(examples, places, strict=True))
            for each in self._single(row, example, here, coded)
        ]
        for part in self._batches(asked, coded):
            for each, words in zip(part, self._guess(part, coded), strict=True):
                found[each.example][each.place] = words
        return found

    def _single(
        self, row: int, example: Example, places: Sequence[Place], coded: Any
    ) -> Iterator[_Asked]:
        """The words of a row that are one piece each."""
        texts = (example.text, example.pair or "")
        at: dict[Place, int | None] = {}
        sides, spans = coded.sequence_ids(row), coded["offset_mapping"][row]
        for position, (side, (start, stop)) in enumerate(zip(sides, spans, strict=True)):
            if side is not None:
                start += len(texts[side][start:stop]) - len(texts[side][start:stop].lstrip())
                span = (side, start, stop)
                at[span] = None if span in at else position  # two pieces of one letter
        ids, unknown = coded["input_ids"][row], self.tokenizer.unk_token_id
        for i, place in enumerate(places):
            position = at.get(place)
            if position is not None and ids[position] != unknown:
                side, start, stop = place
                yield _Asked(row, i, position, texts[side][start:stop])

    def _batches(self, asked: Sequence[_Asked], coded: Any) -> Iterator[list[_Asked]]:
        """The words by rising length of their rows, few at once where rows are long."""
        lengths = [len(ids) for ids in coded["input_ids"]]
        part: list[_Asked] = []
        for each in sorted(asked, key=lambda each: lengths[each.example]):
            if part and len(part) >= min(self.batch_size, MAX_TOKENS // lengths[each.example]):
                yield part
                part = []
            part.append(each)
        if part:
            yield part

    def _guess(self, asked: Sequence[_Asked], coded: Any) -> Iterator[list[str]]:
        rows = [each.example for each in asked]
        longest = max(len(coded["input_ids"][row]) for row in rows)
        inputs: dict[str, Tensor] = {}
        for name in self.tokenizer.model_input_names:
            filler = (self.tokenizer.pad_token_id or 0) if name == "input_ids" else 0
            values_BT = np.full((len(rows), longest), filler, np.int64)
            for b, row in enumerate(rows):
                values_BT[b, : len(coded[name][row])] = coded[name][row]
            inputs[name] = torch.from_numpy(values_BT).to(self._device)
        at_B = torch.tensor([each.position for each in asked], device=self._device)
        every_B = torch.arange(len(rows), device=self._device)
        ids_B = inputs["input_ids"][every_B, at_B].cpu().numpy()
        inputs["input_ids"][every_B, at_B] = self.tokenizer.mask_token_id  # pyright: ignore
        on, kind = self.precision == "bf16", self._device.type
        with torch.no_grad():
            with torch.autocast(kind, dtype=torch.bfloat16, enabled=on):
                hidden_BTH = self.model.base_model(**inputs).last_hidden_state
            scores_BV = vocabulary_scores(self.model, hidden_BTH[every_B, at_B].float())
        if not torch.isfinite(scores_BV).all():
            raise RunError("the masked language model's scores are not finite: check its weights")
        scores_BW = scores_BV.index_select(1, self._on_device_W)
        count = min(
            len(self._words), 4 * (self.candidates + 1)
        )  # a word may be there in many cases
        best = scores_BW.topk(count, dim=1)
        for each, own, values, columns in zip(
            asked, ids_B, best.values.cpu().numpy(), best.indices.cpu().numpy(), strict=True
        ):
            yield self._distinct(each.word, int(own), columns[np.lexsort((columns, -values))])

    def _distinct(self, word: str, own: int, columns: np.ndarray) -> list[str]:
        """The best words that differ from `word`, and from each other by more than case."""
        distinct = {word.casefold(): word}
        for column in columns:
            if self._ids_W[column] != own:
                distinct.setdefault(self._words[column].casefold(), self._words[column])
        return list(distinct.values())[1 : self.candidates + 1]
