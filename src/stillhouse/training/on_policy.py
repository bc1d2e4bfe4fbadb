"""On-policy data: the student writes, and the teacher scores what it wrote.

Axes: N scored rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from stillhouse.core.errors import RunError, UsageError
from stillhouse.core.types import NO_LABEL, Batch, SignalSource
from stillhouse.models.forward import training_mode
from stillhouse.signals.teacher import LiveTeacher

Write = Callable[[nn.Module, Batch, np.random.Generator], Batch]
Rewrite = Callable[[nn.Module, Batch, np.random.Generator], Batch]


def on_policy(write: Write, source: SignalSource | None, *, share: float) -> Rewrite:
    """What `fit` is given as `rewrite`: a micro-batch becomes, with probability `share`, what the
    student itself writes for its examples. Agarwal et al. 2024 (GKD) algorithm 1; share is their
    lambda: (1 - share) times the loss on the data plus share times that on the student's texts.

    `write` makes a batch of the same examples with the student's own continuations as what is
    scored. It is called in eval mode without gradients, and all it draws, be it from torch, follows
    from the generator that it is given. What the student wrote has no gold answers: on it a gold
    term is 0. `source` is the run's teacher. Raises UsageError where it can't score texts that are
    not in the data, RunError for a batch of other examples.
    """
    if not 0 <= share <= 1:
        raise UsageError(f"the share of on-policy batches must be in [0, 1], got {share}")
    if share > 0 and not scores_any_text(source):
        raise UsageError(
            "what the student writes is in no cache: on-policy training needs a live teacher with "
            "the student's tokenizer"
        )

    def rewrite(model: nn.Module, batch: Batch, rng: np.random.Generator) -> Batch:
        if rng.random() >= share:
            return batch
        device = next(model.parameters()).device
        devices = [device] if device.type == "cuda" else []
        with (
            training_mode(model, on=False),
            torch.no_grad(),
            torch.random.fork_rng(devices=devices),
        ):
            torch.manual_seed(int(rng.integers(2**62)))
            written = write(model, batch, rng)
        if not np.array_equal(written.rows, batch.rows):
            raise RunError("the student wrote for other examples than those of its batch")
        return replace(written, gold_N=torch.full((written.scored,), NO_LABEL)).to(device)

    return rewrite


def scores_any_text(source: SignalSource | None) -> bool:
    """Whether a source reads a batch's own tokens, rather than looking its examples up: a live
    teacher without data of its own, ensembles of such, or one that says so (`reads_batch`)."""
    if isinstance(source, LiveTeacher):
        return source.data is None
    sources = getattr(source, "sources", None)
    if sources is not None:
        return all(scores_any_text(one) for one in sources)
    return bool(getattr(source, "reads_batch", False))
