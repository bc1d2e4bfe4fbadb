"""A model in a folder, or on the hub, by its own forward.

Axes: N rows, K choices, B examples, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from stillhouse.core.config import WRITING
from stillhouse.core.errors import ModelError
from stillhouse.core.inference import read_inference, reading, value_guessed
from stillhouse.core.precision import precision_of
from stillhouse.core.types import Batch, Example
from stillhouse.core.writing import WritingConfig
from stillhouse.data.cells import SEVERAL_LABELS
from stillhouse.data.encoding import pad_id
from stillhouse.data.written import Rules, prompts_of
from stillhouse.evaluation.writing import decoding
from stillhouse.flows.common import kind_of, load_answering
from stillhouse.flows.dry_run import Trial, precision_for, two_rows
from stillhouse.models.decode import decode
from stillhouse.models.forward import run, training_mode
from stillhouse.models.generator import load_generator, used_choices
from stillhouse.models.limits import check_tokenizer, tokenizer_for
from stillhouse.models.load import load_config, load_tokenizer, resolve
from stillhouse.models.rules import search_of
from stillhouse.prediction.answers import Answer
from stillhouse.prediction.facts import inference_of


def _kind(name: str, *, trust: bool) -> str:
    """The kind of a stored model, as `kind_of` has it. Raises ModelError for one without an answer
    for a row."""
    config = load_config(name, trust_remote_code=trust)
    if any(each.endswith("ForMaskedLM") for each in config.architectures or []):
        raise ModelError(
            f"{name} is a masked language model: it guesses words and has no answer for a row; "
            "fine-tune it first"
        )
    return kind_of(name)


def _task(kind: str, name: str, config: Any) -> str:
    """What the rows of a loaded model are answered with. Raises ModelError for several labels."""
    if kind != "auto":
        return kind
    if config.num_labels == 1:
        return "regression"
    if config.problem_type == "multi_label_classification":
        raise ModelError(f"{name} gives {SEVERAL_LABELS}")
    return "classification"


def _is_described(name: str) -> bool:
    folder = resolve(name)
    return isinstance(folder, Path) and read_inference(folder) is not None


class FolderModel:
    """A classifier, a regression or a model of spans: scores of passes. Raises ModelError."""

    def __init__(
        self, name: str, *, max_length: int | None = None, precision: str = "auto",
        trust_remote_code: bool = False,
    ) -> None:  # fmt: skip
        kind = _kind(name, trust=trust_remote_code)
        self.writes = kind in WRITING
        tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
        if self.writes:
            of = "seq2seq" if kind == "seq2seq" else "causal_lm"
            self._model = load_generator(name, of, trust_remote_code=trust_remote_code)
            self._tokenizer = tokenizer
        else:
            self._model = load_answering(kind, name, trust_remote_code=trust_remote_code)
            check_tokenizer(self._model, tokenizer)
            self._tokenizer = tokenizer_for(self._model, tokenizer)
        task = _task(kind, name, self._model.config)
        self.facts = reading(
            inference_of(self._model, self._tokenizer, task, name=name), max_length
        )
        self.notes = value_guessed(
            task, self._model.config.problem_type, described=_is_described(name)
        )
        self.precision = precision_of(precision, "cpu")
        if not self.writes:
            batch = two_rows(task, self._tokenizer, self.facts.max_length)
            self.precision = precision_for(Trial(self._model, batch, precision), "cpu")

    @property
    def tokenizer(self) -> tuple[Tokenizer, str]:
        """The tokenizer, and the side it cuts."""
        made: Any = self._tokenizer
        return made.backend_tokenizer, made.truncation_side

    def scores(
        self, inputs: Mapping[str, np.ndarray], answerable_BT: np.ndarray | None
    ) -> np.ndarray:
        """N x K; of spans N x 2 x T."""
        held = {name: torch.from_numpy(array) for name, array in inputs.items()}
        places = None if answerable_BT is None else torch.from_numpy(answerable_BT)
        rows = len(inputs["input_ids"])
        batch = Batch(held, np.arange(rows), answerable_BT=places)
        with training_mode(self._model, on=False), torch.inference_mode():
            found = run(self._model, batch, precision=self.precision, fast=False).scores_NK
        scores = found.float().numpy()
        return scores.reshape(rows, 2, -1) if places is not None else scores

    def generate(self, texts: Sequence[str]) -> tuple[list[Answer], list[bool]]:
        """What the model writes to each text, and whether that was cut."""
        facts, tokenizer = self.facts, self._tokenizer
        kind = "seq2seq" if facts.task == "seq2seq" else "causal_lm"
        length = facts.max_length
        rules = Rules(kind, length, min(facts.target_length or length, length), facts.separator)
        prompts = list(prompts_of([Example(text) for text in texts], tokenizer, rules))
        settings = WritingConfig(**facts.writing)
        search = search_of(
            self._model, beams=settings.beams, length_penalty=settings.length_penalty
        )
        how = decoding(settings, self.precision, search)
        with training_mode(self._model, on=False), torch.inference_mode():
            found = decode(
                self._model, [np.asarray(ids, np.int64) for ids, _ in prompts], how,
                pad_id=pad_id(tokenizer), choices=used_choices(tokenizer),
            )  # fmt: skip
        ids = [each[0].ids.tolist() if each else [] for each in found]
        written: Any = tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [{"answer": text.strip()} for text in written], [long for _, long in prompts]
