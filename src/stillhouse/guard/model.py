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
from stillhouse.data.encoding import encode_now, pad_id, padded
from stillhouse.data.windows import Window, cut
from stillhouse.flows.common import kind_of, load_answering, trained_length
from stillhouse.flows.dry_run import Trial, precision_for, two_rows
from stillhouse.guard.membership import Head
from stillhouse.guard.reading import Reading, TokenRow, reading_of, token_row
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
    check's score, above 0 where it takes the question for none of a customer's. read: what the
    model read of the question, where that is known."""

    probabilities_K: np.ndarray | None = None
    value: float | None = None
    text: str | None = None
    odd: float | None = None
    read: Reading | None = None


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
        if not examples:
            return []
        found: dict[int, Truth] = {}
        with self._lock:
            for rows, batch, cuts in self._batches(examples):
                for row, truth in zip(rows, self._answer(examples, rows, batch, cuts), strict=True):
                    found[row] = truth
        readings = self.reads(examples)
        return [replace(found[row], read=each) for row, each in enumerate(readings)]

    def reads(self, examples: Sequence[Example]) -> list[Reading]:
        """What the model reads of each. Raises DataError."""
        return [reading_of(self._rows(each), self._tokenizer) for each in examples]

    def _rows(self, example: Example) -> list[TokenRow]:
        if self.task == "span":
            cuts = cut([example], self._tokenizer, max_length=self.max_length)
            return [TokenRow(each.ids_T, each.second) for each in cuts]
        return [token_row(example, self._tokenizer, self.max_length)]

    def features(
        self, examples: Sequence[Example]
    ) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor]]:
        """Of batches of examples: which they are, the last layer's states B x T x H, the mask, and
        the logits B x K. A span's are of its first window, the logits where it begins and ends."""
        for rows, batch, cuts in self._batches(examples):
            states_BTH, mask_BT, scores_NK = self._run(batch, read=True)
            assert states_BTH is not None
            first = _firsts(rows, cuts)
            logits_BK = self._logits(scores_NK, len(mask_BT))
            yield rows, states_BTH[first], mask_BT[first], logits_BK[first]

    def _batches(
        self, examples: Sequence[Example]
    ) -> Iterator[tuple[list[int], Batch, list[Window]]]:
        """Examples of similar length together: which they are, and their inputs. Raises
        DataError."""
        self.accepts(examples)
        paired = [each.pair is not None for each in examples]
        lengths = np.array([len(e.text) + len(e.pair or "") for e in examples])
        for alike in (True, False):  # with a second text, and without
            held = np.array([i for i, each in enumerate(paired) if each is alike], np.int64)
            for part in sorted_batches(lengths[held], size=SIZE, max_tokens=4 * MAX_TOKENS):
                rows = held[part].tolist()
                few = [examples[row] for row in rows]
                if self.task == "span":
                    yield rows, *self._windows(few)
                    continue
                inputs = encode_now(few, self._tokenizer, max_length=self.max_length)
                yield rows, Batch(inputs, np.arange(len(rows))), []

    def _windows(self, examples: Sequence[Example]) -> tuple[Batch, list[Window]]:
        cuts = list(cut(examples, self._tokenizer, max_length=self.max_length))
        inputs = padded(
            [each.ids_T for each in cuts], np.array([each.second for each in cuts]),
            pad=pad_id(self._tokenizer), max_length=self.max_length,
            types="token_type_ids" in self._tokenizer.model_input_names,
        )  # fmt: skip
        answerable_BT = np.zeros(inputs["input_ids"].shape, bool)
        for i, each in enumerate(cuts):
            answerable_BT[i, : len(each.chars_T2)] = each.chars_T2[:, 1] > 0
        answerable = torch.from_numpy(answerable_BT)
        return Batch(inputs, np.arange(len(cuts)), answerable_BT=answerable), cuts

    def _run(self, batch: Batch, *, read: bool) -> tuple[Tensor | None, Tensor, Tensor]:
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

    def _answer(
        self, examples: Sequence[Example], rows: Sequence[int], batch: Batch, cuts: list[Window]
    ) -> list[Truth]:
        states_BTH, mask_BT, scores_NK = self._run(batch, read=self._reads)
        odd: list[float] | list[None] = [None] * len(rows)
        if self.head is not None:
            first = _firsts(rows, cuts)
            states = None if states_BTH is None else states_BTH[first]
            logits_BK = self._logits(scores_NK, len(mask_BT))[first]
            odd = self.head.scores(states, mask_BT[first], logits_BK).tolist()
        if self.task == "span":
            texts = self._texts([examples[row] for row in rows], scores_NK, cuts)
            return [Truth(text=t, odd=o) for t, o in zip(texts, odd, strict=True)]
        if self.task == "regression":
            return [Truth(value=float(v), odd=o) for v, o in zip(scores_NK[:, 0], odd, strict=True)]
        shares_NK = scores_NK.double().softmax(-1).numpy()
        return [Truth(row_K, odd=o) for row_K, o in zip(shares_NK, odd, strict=True)]

    @property
    def _reads(self) -> bool:
        return self.head is not None and self.head.reads_states

    def _texts(
        self, examples: Sequence[Example], scores_NK: Tensor, cuts: list[Window]
    ) -> list[str]:
        """The best span of each example's windows."""
        kept: Any = Span().reduce(scores_NK, torch.empty(0)).view(-1, 2, 2).numpy()
        best: dict[int, tuple[float, str]] = {}
        for window, span_22 in zip(cuts, kept, strict=True):
            (first, score), (last, _) = span_22.tolist()
            if window.owner not in best or score > best[window.owner][0]:
                begin, end = window.chars_T2[int(first), 0], window.chars_T2[int(last), 1]
                passage = examples[window.owner].pair or ""
                best[window.owner] = (score, passage[begin:end])
        return [best[owner][1] for owner in range(len(examples))]


def _firsts(rows: Sequence[int], cuts: Sequence[Window]) -> Tensor:
    """Where each example's first row stands."""
    if not cuts:
        return torch.arange(len(rows))
    owners = [window.owner for window in cuts]
    return torch.tensor([owners.index(owner) for owner in range(len(rows))])
