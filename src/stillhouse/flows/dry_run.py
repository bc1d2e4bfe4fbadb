"""Two rows through a model before a run begins, as the run will send them: padded, one of them as
long as a row may be. What a family of models can't do is then said in one line, before a folder is
claimed; that it can't compute in bf16 turns `precision: auto` into float32.

Axes: B examples, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from stillhouse.core.errors import ModelError, StillhouseError
from stillhouse.core.machine import Device, Settled
from stillhouse.core.precision import Auto, precision_of, precisions
from stillhouse.core.terms import AUTO, Config
from stillhouse.core.types import Batch, Example, Tap
from stillhouse.data.encoding import encode_now
from stillhouse.models.forward import NOTHING, run, training_mode

TEXT = "A first sentence, and another one. "
BESIDE = 0.05  # of the largest score: a difference worth a warning
FIX = "set precision to float32 wherever it is bf16 (--set training.precision=float32)"


@dataclass(frozen=True)
class Trial:
    """A model with a batch that it must be able to answer in a precision, and, if it is trained,
    to give gradients for. reads: what the run will read inside it."""

    model: nn.Module
    batch: Batch
    precision: str
    trains: bool = False
    reads: frozenset[Tap] = NOTHING


def two_rows(
    task: str, tokenizer: PreTrainedTokenizerBase, length: int, *, pairs: bool = False
) -> Batch:
    """A row of `length` tokens and a short one as a task's models get them."""
    if pairs or task == "span":
        examples = [Example(TEXT, TEXT * length), Example(TEXT, TEXT)]
    else:
        examples = [Example(TEXT * length), Example(TEXT)]
    inputs = encode_now(examples, tokenizer, max_length=length)
    if task == "seq2seq":
        inputs["decoder_input_ids"] = inputs["input_ids"]
    batch = Batch(inputs, np.arange(2))
    if task == "span":
        return replace(batch, answerable_BT=inputs["attention_mask"].bool())
    if task in ("classification", "regression"):
        return batch
    return replace(batch, scored_N=torch.tensor([0, inputs["input_ids"].numel() // 2]))


def settled(trials: Sequence[Trial], auto: Auto, asked: Config) -> Auto:
    """What `auto` becomes where all trials pass: itself, or float32 where a model can't do bf16.

    Raises ModelError for a model that fails, and for one that can't do bf16 where `asked`, the
    config before its precisions were settled, wants it by name of any of its models.
    """
    for trial in trials:
        reason = failure(trial)
        if reason is None:
            continue
        limit = _only_bf16(trial)
        if limit is None:
            raise ModelError(reason)
        if "bf16" in precisions(asked):
            raise ModelError(f"{limit}: {FIX}")
        again = [replace(each, precision="float32") for each in trials]
        return settled(again, auto.in_float32(limit), asked)
    return auto


def doubts(trials: Sequence[Trial]) -> list[str]:
    """A warning for each family whose answers to a row depend on how far it is filled up, and so on
    the rows that share its batch."""
    found = []
    for trial in trials:
        batch = trial.batch
        if batch.scored_N is not None or batch.answerable_BT is not None:
            continue
        changed = _changed_by_padding(trial.model, batch)
        if changed > BESIDE:
            found.append(
                f"a {_family(trial.model)} doesn't leave padding out: its answers to a row change "
                f"with the rows beside it in a batch (a short one's by {changed:.0%} of their size)"
            )
    return list(dict.fromkeys(found))


def _changed_by_padding(model: nn.Module, batch: Batch) -> float:
    """How far the short row's scores are from those it has alone, as a part of the largest."""
    length = int(batch.inputs["attention_mask"][1].sum())
    alone = Batch({name: x[1:, :length] for name, x in batch.inputs.items()}, batch.rows[1:])
    device = next(model.parameters()).device
    with torch.no_grad(), training_mode(model, on=False):
        both, one = (
            run(model, each.to(device), precision="float32", fast=False).scores_NK
            for each in (batch, alone)
        )
    return float((both[1] - one[0]).abs().max() / both[1].abs().max().clamp_min(1e-3))


def precision_for(trial: Trial, device: Device | None = None) -> Settled:
    """The precision that a trial asks for (auto: what is faster on `device`), float32 where auto
    would be bf16 and the model can't do it. Raises ModelError if it fails."""
    found = precision_of(trial.precision, device)
    now = replace(trial, precision=found)
    reason = failure(now)
    if reason is None:
        return found
    limit = _only_bf16(now)
    if limit is None:
        raise ModelError(reason)
    if trial.precision != AUTO:
        raise ModelError(f"{limit}: set precision to float32")
    return "float32"


def _only_bf16(trial: Trial) -> str | None:
    """In words, that a model which failed would not have failed in float32; None if it would."""
    if trial.precision != "bf16" or failure(replace(trial, precision="float32")) is not None:
        return None
    return f"a {_family(trial.model)} can't compute in bf16"


def failure(trial: Trial) -> str | None:
    """Why a model can't do what a trial asks, in one line; None where it can. Draws nothing from
    torch's generator and leaves no gradients."""
    model, trains = trial.model, trial.trains
    try:
        with torch.random.fork_rng(devices=[]), training_mode(model, on=trains):
            with torch.set_grad_enabled(trains):
                _answer(trial)
    except StillhouseError as error:
        return str(error)
    except Exception as error:  # of as many kinds as there are families
        return _why(model, error, trains=trains)
    return None


def _answer(trial: Trial) -> None:
    model, trains = trial.model, trial.trains
    rng = np.random.default_rng(0) if trains else None
    batch = trial.batch.to(next(model.parameters()).device)
    scores_NK = run(model, batch, precision=trial.precision, rng=rng, reads=trial.reads).scores_NK
    if not bool(scores_NK.isfinite().all()):
        raise ValueError("its scores are not finite numbers")
    if batch.answerable_BT is None and batch.scored_N is None and len(scores_NK) != len(batch.rows):
        raise ValueError(f"it gives {len(scores_NK)} rows of scores for {len(batch.rows)} rows")
    first = next((p for p in model.parameters() if p.requires_grad), None)
    if trains and first is not None:  # of the lowest layer only: all that is above it is passed
        torch.autograd.grad(scores_NK.sum(), [first], allow_unused=True)


def _why(model: nn.Module, error: Exception, *, trains: bool) -> str:
    done = "trained" if trains else "asked"
    if getattr(getattr(model, "config", None), "pad_token_id", 0) is None:
        return (
            f"a {_family(model)} needs to know which tokens are padding, and its config.json has "
            "no pad_token_id: write the id of the tokenizer's pad token there"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0][:200] if lines else type(error).__name__
    return f"a {_family(model)} can't be {done} here: {first}"


def _family(model: nn.Module) -> str:
    return getattr(getattr(model, "config", None), "model_type", "") or type(model).__name__
