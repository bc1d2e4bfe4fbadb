"""What a model writes to every example, and how likely it finds the gold texts and its own.

Axes: E examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.core.config import WritingConfig
from stillhouse.core.progress import Advance
from stillhouse.data.batching import sorted_batches
from stillhouse.data.encoding import pad_id
from stillhouse.models.decode import Decoding, Hypothesis, decode
from stillhouse.models.forward import run, training_mode
from stillhouse.models.generator import used_choices
from stillhouse.models.rules import Search, keep_search, search_of
from stillhouse.tasks.base import Task
from stillhouse.tasks.writing import Texts, kept
from stillhouse.tasks.written import Written

PROMPT, LONGEST = 32, 64  # tokens, where writing is timed
AS_LONG = (2.0, 10.0)  # a text has at most so many times its source's tokens, and so many more
NOTHING = Hypothesis(np.empty(0, np.int64), -np.inf, end=None)
PART = 1 << 24  # scores of a vocabulary at once


def written_rows(
    model: Any,
    data: Written,
    task: Texts,
    *,
    precision: str = "float32",
    quick: bool = False,
    progress: Advance = lambda rows: None,
) -> np.ndarray:
    """Facts and texts of every example (see `tasks.writing.kept`), float32. `quick`: greedily
    only, which stands for the beam's. A row counts as done with its beam, which takes longest."""
    facts = np.zeros((len(data), 5))
    search = search_of_task(model, task)
    one = decoding(task.writing, precision, replace(search, beams=1))
    if quick:
        beam = greedy = written(model, data, one, progress)
    else:
        greedy = written(model, data, one)
        wide = decoding(task.writing, precision, search)
        beam = written(model, data, wide, progress)
    facts[:, :3] = gold_facts(model, data, task, precision=precision)
    facts[:, 3] = [each.logp for each in beam]
    facts[:, 4] = [each.logp for each in greedy]
    return kept(facts, texts_of(greedy, data), texts_of(beam, data))


def texts_of(found: Sequence[Hypothesis], data: Written) -> list[str]:
    ids = [each.ids.tolist() for each in found]
    return [text.strip() for text in data.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def search_of_task(model: Any, task: Texts) -> Search:
    """How a model's texts are searched for to be judged."""
    writing = task.writing
    return search_of(model, beams=writing.beams, length_penalty=writing.length_penalty)


def keep_as_judged(model: Any, task: Task) -> None:
    """Gives a model that is judged by its texts the settings that they were written with, so that
    its users get these by `generate`."""
    if isinstance(task, Texts):
        keep_search(model, search_of_task(model, task), max_tokens=task.writing.max_tokens)


def decoding(config: WritingConfig, precision: str, search: Search) -> Decoding:
    """How texts are written, by a run's settings."""
    return Decoding(
        beams=search.beams,
        max_tokens=config.max_tokens,
        relative_max=None if config.max_tokens else AS_LONG,
        length_penalty=search.length_penalty,
        early_stopping=search.early_stopping,  # pyright: ignore[reportArgumentType]
        max_batch_tokens=config.batch_tokens * search.beams,
        precision=precision,  # pyright: ignore[reportArgumentType]
    )


def written(
    model: PreTrainedModel,
    data: Written,
    settings: Decoding,
    progress: Advance = lambda rows: None,
) -> list[Hypothesis]:
    """The best text to each example."""
    prompts, pad = data.prompts(np.arange(len(data))), pad_id(data.tokenizer)
    with training_mode(model, on=False), torch.no_grad():
        found = decode(model, prompts, settings, pad_id=pad, choices=data.width, progress=progress)
    return [hypotheses[0] if hypotheses else NOTHING for hypotheses in found]


def gold_facts(model: Any, data: Written, task: Texts, *, precision: str) -> np.ndarray:
    """Nats of each gold text, its tokens, and how many of them were the likeliest, E x 3."""
    device = next(model.parameters()).device
    found = np.zeros((len(data), 3))
    with training_mode(model, on=False), torch.no_grad():
        for rows in sorted_batches(data.lengths, size=64, max_tokens=16_384):
            batch = data.batch(rows).to(device)
            answers = run(model, batch, precision=precision, choices=data.width)
            assert batch.gold_N is not None
            step = max(1, PART // answers.width)
            parts = []
            for first in range(0, max(1, len(answers)), step):
                rows_N = slice(first, first + step)
                scores_NK = answers.part(rows_N).scores_NK
                parts.append(task.reduce(scores_NK, batch.gold_N[rows_N]).cpu().numpy())
            kept_N3 = np.concatenate(parts)
            counts = data.scored_counts(rows)
            owner = np.repeat(rows, counts)
            right = kept_N3[:, 0] == batch.gold_N.cpu().numpy()
            np.add.at(found[:, 0], owner, -kept_N3[:, 1].astype(np.float64))
            np.add.at(found[:, 2], owner, right)
            found[rows, 1] = counts
    return found


def writing_runner(
    model: Any, tokenizer: PreTrainedTokenizerBase
) -> Callable[[Mapping[str, Tensor]], list[Hypothesis]]:
    """What writes to a batch's sources greedily, or goes on with its texts' beginnings: to time."""
    width = used_choices(tokenizer)

    def run_once(inputs: Mapping[str, Tensor]) -> list[Hypothesis]:
        real = inputs["attention_mask"].bool()
        prompts = [row[mask].numpy() for row, mask in zip(inputs["input_ids"], real, strict=True)]
        if not model.config.is_encoder_decoder:
            prompts = [prompt[: max(1, min(PROMPT, len(prompt) // 2))] for prompt in prompts]
        settings = Decoding(beams=1, max_tokens=LONGEST, relative_max=AS_LONG)
        found = decode(model, prompts, settings, pad_id=pad_id(tokenizer), choices=width)
        return [each[0] if each else NOTHING for each in found]

    return run_once


def mean_tokens(found: Sequence[Hypothesis]) -> float:
    """Tokens of a text on average, the end token counted."""
    return float(np.mean([len(each.ids) + each.finished for each in found]))
