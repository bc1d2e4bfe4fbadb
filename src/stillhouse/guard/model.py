"""The model that is served: a few questions as they come, answered with what the guard needs.

Axes: B questions, T tokens, H hidden, K choices.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from stillhouse.core.errors import DataError
from stillhouse.core.terms import Precision
from stillhouse.core.types import Batch, Example, Tap
from stillhouse.data.batching import sorted_batches
from stillhouse.data.encoding import pad_id, padded, token_rows
from stillhouse.data.windows import cut
from stillhouse.flows.common import kind_of, load_answering, trained_length
from stillhouse.flows.dry_run import Trial, precision_for, two_rows
from stillhouse.guard.membership import Head
from stillhouse.guard.reading import Reading, TokenRow, guess, reading_of
from stillhouse.models.forward import fast_weights, has_fast_path, run
from stillhouse.models.limits import check_tokenizer, max_tokens, tokenizer_for
from stillhouse.models.load import fingerprint, label_names, load_tokenizer
from stillhouse.models.student import blocks
from stillhouse.tasks.span import Span

Kind = Literal["classification", "regression", "span"]
SIZE, MAX_TOKENS = 64, 16_384  # rows and padded tokens of one pass


@dataclass(frozen=True)
class About:
    """What a guard must know of a model. fingerprint: stands for its version."""

    fingerprint: str
    name: str
    task: str
    choices: Sequence[str] = ()


@dataclass(frozen=True)
class Truth:
    """What the model says of one question: probabilities, a value or a text. odd: the membership
    check's score, above 0 where it takes the question for none of a customer's. read: what it read,
    where that is known."""

    probabilities_K: np.ndarray | None = None
    value: float | None = None
    text: str | None = None
    odd: float | None = None
    read: Reading | None = None


@dataclass(frozen=True, eq=False)
class InputRow(TokenRow):
    """What one row of a pass reads. Of a window: where in its passage each token stands, (0, 0) for
    one that is not of it."""

    chars_T2: np.ndarray | None = None
    passage: str = ""

    def __len__(self) -> int:
        return len(self.ids_T)


@dataclass(frozen=True, eq=False)
class Tokenized(Reading):
    """A question as the model reads it: one row, or a passage's windows."""

    rows: tuple[InputRow, ...]


@dataclass(frozen=True, eq=False)
class Part:
    """What a pass says of one row. sure: a span's score, by which windows compete."""

    truth: Truth
    sure: float = 0.0


class ServedModel:
    """A fine-tuned model in a folder. Raises ModelError."""

    def __init__(
        self, name: str | Path, *, head: Head | None = None, max_length: int | None = None,
        precision: Precision = "auto", trust_remote_code: bool = False,
    ) -> None:  # fmt: skip
        self.name = Path(name).name
        asked = kind_of(str(name))
        self.model: PreTrainedModel = load_answering(
            asked, str(name), trust_remote_code=trust_remote_code
        ).requires_grad_(False)
        self._tokenizer = load_tokenizer(str(name), trust_remote_code=trust_remote_code)
        check_tokenizer(self.model, self._tokenizer)
        self._tokenizer = tokenizer_for(self.model, self._tokenizer)
        labels = getattr(self.model.config, "num_labels", 0)
        self.task: Kind = (
            "span" if asked == "span" else "regression" if labels == 1 else "classification"
        )
        self.choices = label_names(self.model.config) if self.task == "classification" else []
        length = max_length or trained_length(str(name), self.task)
        self.max_length = max_tokens(self.model, length)
        self.fingerprint = fingerprint(self.model)
        self.head = head
        if head is not None:
            head.check(self.fingerprint)
        batch = two_rows(self.task, self._tokenizer, self.max_length)
        self.precision = precision_for(Trial(self.model, batch, precision), "cpu")
        self._last = Tap("hidden", len(blocks(self.model)[1]))
        self._weights = (
            fast_weights(self.model, self.precision) if has_fast_path(self.model) else None
        )
        self._lock = threading.Lock()  # one pass at a time: torch has all cores already

    @property
    def about(self) -> About:
        return About(self.fingerprint, self.name, self.task, self.choices)

    def accepts(self, examples: Sequence[Example]) -> None:
        """Raises DataError for a question on no passage."""
        if self.task == "span" and any(each.pair is None for each in examples):
            raise DataError("a question needs the passage that it is about: give it as pair")

    def answers(self, examples: Sequence[Example]) -> list[Truth]:
        """Asked in batches of similar length. Raises DataError."""
        found: dict[int, Truth] = {}
        with self._lock:
            for places, reads in self._alike(examples):
                rows = [row for read in reads for row in read.rows]
                parts = iter(
                    [
                        part
                        for at in range(0, len(rows), SIZE)
                        for part in self._run(rows[at : at + SIZE])
                    ]
                )
                for place, read in zip(places, reads, strict=True):
                    found[place] = whole([next(parts) for _ in read.rows], read)
        return [found[place] for place in range(len(examples))]

    def expects(self, example: Example) -> int:
        """About how many tokens will be read of a question."""
        found = guess(example)
        return found if self.task == "span" else min(found, self.max_length)

    def read(self, example: Example) -> Tokenized:
        """A question as the model reads it. Raises DataError for one on no passage."""
        return self.reads([example])[0]

    def reads(self, examples: Sequence[Example]) -> list[Tokenized]:
        """Questions as the model reads them, each as if alone. Raises DataError."""
        self.accepts(examples)
        found: dict[int, Tokenized] = {}
        for alike in (True, False):  # with a second text, and without
            places = [i for i, each in enumerate(examples) if (each.pair is not None) is alike]
            rows = self._rows([examples[place] for place in places]) if places else []
            for place, each in zip(places, rows, strict=True):
                about = reading_of(each, self._tokenizer)
                found[place] = Tokenized(about.content, about.tokens, each)
        return [found[place] for place in range(len(examples))]

    def answer_rows(self, rows: Sequence[InputRow]) -> list[Part]:
        """One pass of the model: what it says of each row. Rows of similar length cost least."""
        with self._lock:
            return self._run(rows)

    def features(
        self, examples: Sequence[Example]
    ) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor]]:
        """Of batches of examples: which they are, the last layer's states B x T x H, the mask, and
        the logits B x K. A span's are of its first window, the logits where it begins and ends."""
        for places, reads in self._alike(examples):
            batch = self._batch([read.rows[0] for read in reads])
            states_BTH, mask_BT, scores_NK = self._forward(batch, read=True)
            assert states_BTH is not None
            yield places, states_BTH, mask_BT, self._logits(scores_NK, len(mask_BT))

    def _alike(self, examples: Sequence[Example]) -> Iterator[tuple[list[int], list[Tokenized]]]:
        """Examples of similar length together: which they are, and as they are read. Raises
        DataError."""
        self.accepts(examples)
        paired = [each.pair is not None for each in examples]
        lengths = np.array([len(e.text) + len(e.pair or "") for e in examples], np.int64)
        for alike in (True, False):
            held = np.array([i for i, each in enumerate(paired) if each is alike], np.int64)
            for part in sorted_batches(lengths[held], size=SIZE, max_tokens=4 * MAX_TOKENS):
                places = held[part].tolist()
                yield places, self.reads([examples[place] for place in places])

    def _rows(self, examples: Sequence[Example]) -> list[tuple[InputRow, ...]]:
        """Each example's rows. All have a pair, or none has."""
        if self.task != "span":
            ids, seconds = token_rows(examples, self._tokenizer, max_length=self.max_length)
            return [(InputRow(ids_T, second),) for ids_T, second in zip(ids, seconds, strict=True)]
        found: list[list[InputRow]] = [[] for _ in examples]
        for each in cut(examples, self._tokenizer, max_length=self.max_length):
            passage = examples[each.owner].pair or ""
            found[each.owner].append(InputRow(each.ids_T, each.second, each.chars_T2, passage))
        return [tuple(rows) for rows in found]

    def _batch(self, rows: Sequence[InputRow]) -> Batch:
        inputs = padded(
            [row.ids_T for row in rows], np.array([row.second for row in rows]),
            pad=pad_id(self._tokenizer), max_length=self.max_length,
            types="token_type_ids" in self._tokenizer.model_input_names,
        )  # fmt: skip
        answerable = None
        if self.task == "span":
            answerable_BT = np.zeros(inputs["input_ids"].shape, bool)
            for i, row in enumerate(rows):
                assert row.chars_T2 is not None
                answerable_BT[i, : len(row.chars_T2)] = row.chars_T2[:, 1] > 0
            answerable = torch.from_numpy(answerable_BT)
        return Batch(inputs, np.arange(len(rows)), answerable_BT=answerable)

    def _forward(self, batch: Batch, *, read: bool) -> tuple[Tensor | None, Tensor, Tensor]:
        """The last states, the mask and the scores."""
        reads = {self._last} if read else set()
        with torch.inference_mode():
            output = run(
                self.model, batch, precision=self.precision, weights=self._weights, reads=reads
            )
        states = output.states[self._last].float() if output.states is not None else None
        return states, batch.inputs["attention_mask"].bool(), output.scores_NK.float()

    def _logits(self, scores_NK: Tensor, rows: int) -> Tensor:
        """A row of logits each: of a span, how sure the best beginning and end are."""
        if self.task != "span":
            return scores_NK
        best_B2 = scores_NK.log_softmax(-1).amax(-1).view(rows, 2)
        return best_B2

    def _run(self, rows: Sequence[InputRow]) -> list[Part]:
        batch = self._batch(rows)
        reads = self.head is not None and self.head.reads_states
        states_BTH, mask_BT, scores_NK = self._forward(batch, read=reads)
        odd: list[float] | list[None] = [None] * len(rows)
        if self.head is not None:
            logits_BK = self._logits(scores_NK, len(mask_BT))
            odd = self.head.scores(states_BTH, mask_BT, logits_BK).tolist()
        if self.task == "span":
            spans = self._spans(rows, scores_NK)
            return [
                Part(Truth(text=t, odd=o), sure) for (t, sure), o in zip(spans, odd, strict=True)
            ]
        if self.task == "regression":
            values = scores_NK[:, 0].tolist()
            return [Part(Truth(value=v, odd=o)) for v, o in zip(values, odd, strict=True)]
        shares_NK = scores_NK.double().softmax(-1).numpy()
        return [Part(Truth(row_K, odd=o)) for row_K, o in zip(shares_NK, odd, strict=True)]

    def _spans(self, rows: Sequence[InputRow], scores_NK: Tensor) -> list[tuple[str, float]]:
        """The best span of each window, and its score."""
        kept: Any = Span().reduce(scores_NK, torch.empty(0)).view(-1, 2, 2).numpy()
        found: list[tuple[str, float]] = []
        for row, span_22 in zip(rows, kept, strict=True):
            (first, score), (last, _) = span_22.tolist()
            assert row.chars_T2 is not None
            begin, end = row.chars_T2[int(first), 0], row.chars_T2[int(last), 1]
            found.append((row.passage[begin:end], score))
        return found


def whole(parts: Sequence[Part], read: Tokenized) -> Truth:
    """What a question's rows say together: of several windows the surest answers, and the first
    tells how odd it looks."""
    best = max(parts, key=lambda part: part.sure)  # of equals the first
    about = Reading(read.content, read.tokens)  # without the rows, which nobody needs any more
    return replace(best.truth, odd=parts[0].truth.odd, read=about)
