"""What an API gives away before any thief is trained.

Axes: N queries, K choices, H hidden.
"""

from __future__ import annotations

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
NEEDED = 0.005  # a probability's error that no user would notice


def digits(answers: Answers) -> Leak:
    """Whether probabilities are given to more digits than anyone needs: fewer keep every label and
    all shares to within half a hundredth, and tell a thief less."""
    shown_NK = answers.probabilities_NK
    assert shown_NK is not None
    shares = shown_NK[~np.isnan(shown_NK)]
    given = next((d for d in range(1, 16) if np.array_equal(shares.round(d), shares)), 16)
    labels_N = np.nanargmax(shown_NK, -1)
    enough = next(
        (
            d
            for d in range(1, given)
            if np.abs(shares.round(d) - shares).max() <= NEEDED
            and _same_labels(shown_NK.round(d), labels_N)
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


def _same_labels(rounded_NK: np.ndarray, labels_N: np.ndarray) -> bool:
    """Whether each row's largest share is still that of its label, and of it alone."""
    most_N1 = np.nanmax(rounded_NK, -1, keepdims=True)
    alone = (rounded_NK == most_N1).sum(-1) == 1
    return bool((alone & (np.nanargmax(rounded_NK, -1) == labels_N)).all())


def hidden_size(scores_NK: np.ndarray) -> Leak:
    """Whether the rank of the answers' logits is less than there are choices: then it is the hidden
    size of the model. Carlini et al. 2024, sec. 4; Finlayson et al. 2024. Log-probabilities are
    logits but for a constant a row, which their mean takes with it."""
    rows, choices = scores_NK.shape
    centred_NK = scores_NK.astype(np.float64) - scores_NK.mean(-1, keepdims=True)
    values = np.linalg.svd(centred_NK, compute_uv=False)
    most = min(rows, choices - 1)
    values = np.maximum(values[:most], np.finfo(np.float64).tiny)
    falls = values[:-1] / values[1:]
    rank = int(falls.argmax()) + 1 if len(falls) and falls.max() > GAP else most
    if rank < most:
        told = f"the logits of {rows:,} answers have rank {rank} of {choices:,}: the hidden size"
        return Leak(name="hidden size", leaks=True, finding=f"{told} is about {rank}")
    if rows < choices:
        told = f"{rows:,} answers are fewer than the {choices:,} choices: their rank tells nothing"
    else:
        told = f"there are {choices:,} choices, no more than the hidden size: their rank hides it"
    return Leak(name="hidden size", leaks=False, finding=told)


def frozen_encoder(
    answers: Answers, features: Mapping[str, np.ndarray], name: str, rng: np.random.Generator
) -> Leak:
    """Whether the answers are a linear head on a public encoder's `features` (N x H, by where they
    are read): then the head is found by least squares from about 2 H queries, and the copy is
    exact. Xu et al. 2021 (grey-box extraction)."""
    scores_NK = answers.scores().astype(np.float64)
    targets_NK = (
        scores_NK - scores_NK.mean(-1, keepdims=True) if scores_NK.shape[1] > 1 else scores_NK
    )
    best, place, used = -np.inf, "", 0
    for where, found_NH in features.items():
        order = rng.permutation(len(found_NH))
        used_here = min(2 * found_NH.shape[1], len(order) // 2)
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
        told = (
            f"the victim is {name}, frozen, under a linear head: {used:,} queries give the head "
            f"away (it explains {best:.1%} of other answers from {place})"
        )
        return Leak(name="frozen encoder", leaks=True, finding=told)
    told = f"no linear head on a frozen {name} explains the answers ({max(best, 0):.0%} of them)"
    return Leak(name="frozen encoder", leaks=False, finding=told)


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
