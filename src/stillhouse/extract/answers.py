"""What an API said, and what a thief can learn from that.

Axes: N queries, K choices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from stillhouse.core.errors import DataError
from stillhouse.core.types import Batch, Dense, Labels
from stillhouse.extract.views import View

SMALLEST = 1e-6  # a probability that is shown as 0, where nothing says how it was rounded


@dataclass(frozen=True)
class Answers:
    """What was said to N queries. Probabilities are NaN where a choice was not shown."""

    choices: list[str]
    probabilities_NK: np.ndarray | None = None
    labels_N: np.ndarray | None = None
    values_N: np.ndarray | None = None
    texts: list[str] | None = None
    digits: int | None = None

    def __len__(self) -> int:
        held = (self.probabilities_NK, self.labels_N, self.values_N, self.texts)
        return next(len(each) for each in held if each is not None)

    def first(self, count: int) -> Answers:
        """The answers to the first `count` queries."""
        return replace(
            self,
            **{
                name: value[:count]
                for name in ("probabilities_NK", "labels_N", "values_N", "texts")
                if (value := getattr(self, name)) is not None
            },
        )

    def sure(self) -> Answers:
        """Labels alone as probabilities of one, where an API showed probabilities before."""
        if self.probabilities_NK is not None or self.labels_N is None:
            return self
        shares_NK = np.full((len(self.labels_N), len(self.choices)), np.nan)
        shares_NK[np.arange(len(self.labels_N)), self.labels_N] = 1.0
        return replace(self, probabilities_NK=shares_NK)

    def seen(self, view: View) -> Answers:
        """What of these a narrower API shows. Raises DataError for what they don't have."""
        if view.shows == "text":
            return Answers(self.choices, texts=self._held(self.texts, view))
        if view.shows == "value":
            values_N = self._held(self.values_N, view)
            if view.digits is not None:
                values_N = values_N.round(view.digits)
            return Answers([], values_N=values_N, digits=view.digits)
        if view.shows == "label":
            if self.labels_N is not None:
                return Answers(self.choices, labels_N=self.labels_N)
            shown_NK = self._held(self.probabilities_NK, view)
            return Answers(self.choices, labels_N=np.nanargmax(shown_NK, axis=-1))
        shown_NK = self._held(self.probabilities_NK, view).copy()
        if view.top is not None and view.top < shown_NK.shape[1]:
            order_NK = np.argsort(-np.nan_to_num(shown_NK, nan=-1.0), axis=-1, kind="stable")
            np.put_along_axis(shown_NK, order_NK[:, view.top :], np.nan, axis=-1)
        if view.digits is not None:
            shown_NK = shown_NK.round(view.digits)
        return Answers(self.choices, shown_NK, digits=view.digits)

    def _held(self, value: Any, view: View) -> Any:
        if value is None:
            raise DataError(
                f"the victim shows no {view.shows}: audit another view than {view.name}"
            )
        return value

    def show(self, row: int) -> str:
        """One answer, in words."""
        if self.texts is not None:
            return self.texts[row]
        if self.values_N is not None:
            return f"{self.values_N[row]:g}"
        if self.probabilities_NK is None:
            assert self.labels_N is not None
            return self.choices[int(self.labels_N[row])]
        shown = [(share, name) for share, name in zip(self.probabilities_NK[row], self.choices,
                                                      strict=True) if share == share]  # fmt: skip
        return ", ".join(f"{name} {share:.3g}" for share, name in sorted(shown, reverse=True)[:5])

    def scores(self) -> np.ndarray:
        """Log-probabilities (values, K = 1) as a thief would reckon them, N x K: what is hidden is
        shared evenly by the hidden choices, and a share shown as 0 is half of the smallest that
        would not be."""
        if self.values_N is not None:
            return np.asarray(self.values_N, np.float32)[:, None]
        assert self.probabilities_NK is not None, "labels and texts have no scores"
        least = SMALLEST if self.digits is None else 0.5 * 10.0**-self.digits / 2
        shown_NK = np.asarray(self.probabilities_NK, np.float64)
        hidden_NK = np.isnan(shown_NK)
        count_N1 = hidden_NK.sum(-1, keepdims=True)
        rest_N1 = np.clip(1 - np.nansum(shown_NK, -1, keepdims=True), 0, None)
        filled_NK = np.where(hidden_NK, rest_N1 / np.maximum(count_N1, 1), shown_NK)
        filled_NK = np.clip(filled_NK, least, None)
        filled_NK /= filled_NK.sum(-1, keepdims=True)
        return np.log(filled_NK).astype(np.float32)


def from_json(found: Sequence[Mapping[str, Any]], choices: Sequence[str] | None = None) -> Answers:
    """The answers of an API, as an endpoint reads them. `choices`: names known before, in their
    order. An answer that is a label only, among others with probabilities, is sure of it. Raises
    DataError where answers differ in kind otherwise, or full probabilities in their labels."""
    kinds = {frozenset(each) for each in found}
    if len(kinds) != 1 and kinds != {frozenset(["label"]), frozenset(["label", "probabilities"])}:
        raise DataError("some of the API's answers have what others lack: " + _shown(kinds))
    kind = max(kinds, key=len)
    if "text" in kind:
        return Answers([], texts=[each["text"] for each in found])
    if "value" in kind:
        return Answers([], values_N=np.array([each["value"] for each in found], np.float32))
    named = [each.get("probabilities", {}) for each in found]
    names = {name for each in named for name in each} | {e["label"] for e in found if "label" in e}
    order = [*(choices or ()), *sorted(names - set(choices or ()))]
    _same_labels(named)
    place = {name: i for i, name in enumerate(order)}
    probabilities_NK: np.ndarray | None = None
    if "probabilities" in kind:
        probabilities_NK = np.full((len(found), len(order)), np.nan)
        for row, each in enumerate(named):
            for name, share in (each or {found[row]["label"]: 1.0}).items():
                probabilities_NK[row, place[name]] = share
        _are_shares(probabilities_NK)
    labels_N = np.array([place[e["label"]] for e in found]) if "label" in kind else None
    return Answers(order, probabilities_NK, labels_N)


def _shown(kinds: set[frozenset[str]]) -> str:
    return "; ".join(sorted(", ".join(sorted(kind)) or "nothing" for kind in kinds))


def _same_labels(named: Sequence[Mapping[str, float]]) -> None:
    """Raises DataError where whole distributions are over other labels in one call than in another:
    an API that was changed meanwhile. (Of the top few, the labels differ.)"""
    whole = [frozenset(each) for each in named if abs(sum(each.values()) - 1) < 1e-3]
    sets = sorted({tuple(sorted(each)) for each in whole if len(each) > 1}, key=len)
    for mine in sets:
        if not set(mine) <= set(sets[-1]):
            raise DataError(
                f"the API's labels change between calls: {', '.join(mine)}, then "
                f"{', '.join(sets[-1])}; was the model replaced meanwhile?"
            )


def _are_shares(probabilities_NK: np.ndarray) -> None:
    shown = probabilities_NK[~np.isnan(probabilities_NK)]
    if shown.size and (shown.min() < 0 or shown.max() > 1 + 1e-6 or np.isinf(shown).any()):
        raise DataError(
            f"the API's probabilities reach from {shown.min():g} to {shown.max():g}: are they "
            "logits or percentages? read.probabilities names shares of 1"
        )


class Told:
    """A source of what a victim said, by position among the queries."""

    def __init__(self, answers: Answers, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.kind: type[Dense] | type[Labels] = Labels if answers.labels_N is not None else Dense
        if answers.labels_N is not None:
            self._held = torch.from_numpy(np.asarray(answers.labels_N, np.int64))
        else:
            self._held = torch.from_numpy(answers.scores())

    def signal(self, batch: Batch) -> Dense | Labels:
        found = self._held[torch.from_numpy(batch.rows)]
        for tensor in batch.inputs.values():
            found = found.to(tensor.device)
            break
        return Labels(found) if self.kind is Labels else Dense(found)
