"""What an API gives away before any thief is trained.

Axes: N queries, K choices, H hidden.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.core.audit_results import Leak
from stillhouse.data.batching import sorted_batches
from stillhouse.extract.answers import Answers
from stillhouse.models.forward import training_mode
from stillhouse.tasks.base import Data

GAP = 1e3  # a fall between two singular values, in a row, that noise does not make
RIDGE = 1e-6  # of the features' mean square
FROZEN = 0.99  # share of the variance on other queries that only the right features explain
EXACT = 6  # digits of shares whose logarithms are logits
NARROW = 16  # outputs: no model's hidden states are so few
TESTED = 2.5  # answers for a feature: two to fit a head, the rest to try it on
NEEDED = 0.005  # a probability's error that no user would notice


def digits(answers: Answers) -> Leak:
    """Whether probabilities are given to more digits than anyone needs: fewer keep every label and
    all shares to within half a hundredth, and tell a thief less."""
    shown_NK = answers.probabilities_NK
    assert shown_NK is not None
    shares = shown_NK[~np.isnan(shown_NK)]
    given = _digits_of(shares)
    labels_N = np.nanargmax(shown_NK, -1)
    tied_N = (shown_NK == np.nanmax(shown_NK, -1, keepdims=True)).sum(-1) > 1
    enough = next(
        (
            d
            for d in range(1, given)
            if np.abs(shares.round(d) - shares).max() <= NEEDED
            and _same_labels(shown_NK.round(d), labels_N, tied_N)
        ),
        given,
    )
    told = (
        f"probabilities have {given if given < 16 else 'all their'} digits; {enough} keep every "
        f"label of {len(labels_N):,} answers, and each share to within {NEEDED}"
        if enough < given
        else f"probabilities have {given} digits, no more than they need"
    )
    return Leak(name="digits", leaks=enough < given, finding=told)


def _digits_of(shares: np.ndarray) -> int:
    """After the point, of shares that are shown; 16: all."""
    shown = shares[~np.isnan(shares)]
    return next((d for d in range(1, 16) if np.array_equal(shown.round(d), shown)), 16)


def _same_labels(rounded_NK: np.ndarray, labels_N: np.ndarray, tied_N: np.ndarray) -> bool:
    """Whether each row's largest share is still that of its label, and of it alone; rows that were
    tied before say nothing."""
    most_N1 = np.nanmax(rounded_NK, -1, keepdims=True)
    alone = (rounded_NK == most_N1).sum(-1) == 1
    same = alone & (np.nanargmax(rounded_NK, -1) == labels_N)
    return bool((same | tied_N).all())


def _logits(answers: Answers) -> tuple[np.ndarray, np.ndarray] | str:
    """Logits, but for a constant a row, of the answers that show all of them, N x K, and where
    these are; or why there are none. (The floor that a thief puts under shares would bend them.)"""
    if answers.values_N is not None:
        return np.asarray(answers.values_N, np.float64)[:, None], np.arange(len(answers))
    shares_NK = answers.probabilities_NK
    assert shares_NK is not None
    if np.isnan(shares_NK).any():
        return "only some of the choices are shown"
    if (given := _digits_of(shares_NK)) < EXACT:
        return f"probabilities have {given} digits"
    rows = np.flatnonzero((shares_NK > 0).all(-1))
    logs_NK = np.log(np.asarray(shares_NK[rows], np.float64))
    return logs_NK - logs_NK.mean(-1, keepdims=True), rows


def hidden_size(answers: Answers) -> Leak:
    """Whether the rank of the answers' logits is less than there are choices: then it is the hidden
    size of the model. Carlini et al. 2024, sec. 4; Finlayson et al. 2024. Log-probabilities are
    logits but for a constant a row, which their mean takes with it."""
    leaks, told = _rank(answers)
    return Leak(name="hidden size", leaks=leaks, finding=told)


def _rank(answers: Answers) -> tuple[bool, str]:
    read = _logits(answers)
    if isinstance(read, str):
        return False, f"{read}: their rank tells nothing"
    rows, choices = read[0].shape
    if choices <= NARROW:
        return False, f"{choices} outputs are fewer than any hidden size: their rank tells nothing"
    if rows < choices:
        return False, (
            f"{rows:,} answers are fewer than the {choices:,} choices: their rank tells nothing"
        )
    values = np.linalg.svd(read[0], compute_uv=False)[: choices - 1]
    values = np.maximum(values, np.finfo(np.float64).tiny)
    falls = values[:-1] / values[1:]
    if falls.max() <= GAP:
        return False, (
            f"the logits of {rows:,} answers fill all {choices:,} choices: the hidden size is no "
            "less, or something else hides it"
        )
    rank = int(falls.argmax()) + 1
    return True, (
        f"the logits of {rows:,} answers have rank {rank} of {choices:,}: the hidden size is about "
        f"{rank}"
    )


def frozen_encoder(
    answers: Answers, features: Mapping[str, np.ndarray], name: str, rng: np.random.Generator
) -> Leak:
    """Whether the answers are a linear head on a public encoder's `features` (N x H, by where they
    are read): then the head is found by least squares from about 2 H queries, and the copy is
    exact. Xu et al. 2021 (grey-box extraction)."""
    leaks, told = _head_of(answers, features, name, rng)
    return Leak(name="frozen encoder", leaks=leaks, finding=told)


def _head_of(
    answers: Answers, features: Mapping[str, np.ndarray], name: str, rng: np.random.Generator
) -> tuple[bool, str]:
    read = _logits(answers)
    if isinstance(read, str):
        return False, f"{read}: whether a frozen {name} is under them can't be told this way"
    targets_NK, rows = read
    width = max(found_NH.shape[1] for found_NH in features.values())
    if len(rows) < TESTED * width:
        return False, (
            f"{len(rows):,} whole answers are too few to tell a head on a frozen {name}: "
            f"{math.ceil(TESTED * width):,} would be enough"
        )
    best, place, used = -np.inf, "", 0
    for where, whole_NH in features.items():
        found_NH = whole_NH[rows]
        order = rng.permutation(len(found_NH))
        used_here = 2 * found_NH.shape[1]
        fitted, others = order[:used_here], order[used_here:]
        head = _least_squares(found_NH[fitted], targets_NK[fitted])
        ones = np.ones((len(others), 1))
        guessed_NK = np.hstack([found_NH[others], ones]) @ head
        left = ((targets_NK[others] - guessed_NK) ** 2).sum()
        whole = ((targets_NK[others] - targets_NK[others].mean(0)) ** 2).sum()
        share = 1 - left / max(whole, 1e-12)
        if share > best:
            best, place, used = share, where, used_here
    if best >= FROZEN:
        return True, (
            f"the victim is {name}, frozen, under a linear head: {used:,} queries give the head "
            f"away (it explains {best:.1%} of other answers from {place})"
        )
    return False, (
        f"no linear head on a frozen {name} explains the answers ({max(best, 0):.0%} of their "
        "variance)"
    )


def _least_squares(features_NH: np.ndarray, targets_NK: np.ndarray) -> np.ndarray:
    """Weights and (last row) bias, drawn to 0 by a trace of a ridge."""
    wide = np.hstack([features_NH, np.ones((len(features_NH), 1))]).astype(np.float64)
    gram = wide.T @ wide
    gram.flat[:: len(gram) + 1] += RIDGE * np.trace(gram) / len(gram)
    return np.linalg.solve(gram, wide.T @ targets_NK)


def public_features(model: Any, data: Data) -> dict[str, np.ndarray]:
    """What heads read of an encoder: the first token's state, the mean of all, the pooler's."""
    found: dict[str, np.ndarray] = {}

    def put(name: str, rows: np.ndarray, values_BH: Tensor) -> None:
        if name not in found:
            found[name] = np.empty((len(data), values_BH.shape[1]), np.float64)
        found[name][rows] = values_BH.double().numpy()

    with training_mode(model, on=False), torch.no_grad():
        for rows in sorted_batches(data.lengths, size=64, max_tokens=8192):
            inputs = dict(data.batch(rows).inputs)
            output = model.base_model(**inputs)
            states_BTH, mask_BT1 = output.last_hidden_state, inputs["attention_mask"][..., None]
            put("the first token", rows, states_BTH[:, 0])
            put("the mean of its tokens", rows, (states_BTH * mask_BT1).sum(1) / mask_BT1.sum(1))
            if getattr(output, "pooler_output", None) is not None:
                put("its pooler", rows, output.pooler_output)
    return found
