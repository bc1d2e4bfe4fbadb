"""What stays of a layer takes over the work of what goes, as far as least squares can.

The outputs of attention and of the feed-forward network are linear in their heads' and neurons'
activations, which are correlated: the weights that are left are solved for, so that a layer's
output on data changes least. He, Zhang & Sun 2017, "Channel pruning", sec. 3.1 (reconstruction).
Each layer by itself: what cuts below it change in its inputs is not seen.

Axes: B examples, T tokens, U heads' dimensions or neurons, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stillhouse.core.progress import Advance
from stillhouse.models.forward import run, training_mode
from stillhouse.models.student import blocks
from stillhouse.models.surgery import Kept, cut, parts_of, sizes
from stillhouse.tasks.base import Data

BATCH = 32
RIDGE = 1e-3  # of the activations' mean square


class Refit:
    """Cuts a model and refits what is left, by what its activations are on some rows."""

    def __init__(
        self,
        model: PreTrainedModel,
        data: Data,
        rows: np.ndarray,
        *,
        progress: Advance = lambda rows: None,
    ) -> None:
        self._model, self._parts, self._head = model, parts_of(model), sizes(model).head
        self._moments = _moments(model, (self._parts[1], self._parts[3]), data, rows, progress)

    def __call__(self, kept: Sequence[Kept]) -> PreTrainedModel:
        """`surgery.cut`, refitted."""
        found = cut(self._model, kept)
        theirs = blocks(self._model)[1]
        with torch.no_grad():
            for block, each in zip(blocks(found)[1], kept, strict=True):
                dims = [a * self._head + d for a in each.heads for d in range(self._head)]
                for part, units in ((self._parts[1], dims), (self._parts[3], list(each.neurons))):
                    layer: Any = block.get_submodule(part)
                    whole: Any = theirs[each.layer - 1].get_submodule(part)
                    if len(units) == whole.in_features:
                        continue
                    moments = self._moments[each.layer, part]
                    weight, bias = solved(moments, whole.weight, torch.tensor(units))
                    layer.weight.copy_(weight)
                    layer.bias.add_(bias)
        return found


def solved(moments_UU: Tensor, weight_HU: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
    """The weights of the units that stay, and what the bias gains: least squares on activations
    with these second moments (their last row and column are those of a constant 1), drawn to the
    weights as they are by a little ridge."""
    ones = torch.tensor([len(moments_UU) - 1])
    stay = torch.cat([units, ones])
    gone = torch.ones(len(moments_UU) - 1, dtype=torch.bool)
    gone[units] = False
    gram = moments_UU[stay][:, stay].double()
    ridge = RIDGE * gram.diagonal()[:-1].mean().clamp_min(1e-12)
    gram.diagonal()[:-1] += ridge
    lost = moments_UU[stay][:, :-1][:, gone].double() @ weight_HU[:, gone].double().T
    gain = torch.linalg.solve(gram, lost)
    return weight_HU[:, units] + gain[:-1].T.float(), gain[-1].float()


def _moments(
    model: PreTrainedModel,
    parts: tuple[str, str],
    data: Data,
    rows: np.ndarray,
    progress: Advance,
) -> dict[tuple[int, str], Tensor]:
    """Mean products of what enters each layer's `parts`, a 1 appended: at real tokens, but in a
    classifier's last layer at the first token, which is all that its head reads."""
    total: dict[tuple[int, str], Tensor] = {}
    tokens: dict[tuple[int, str], int] = {}
    own = list(blocks(model)[1])
    heads_read_first = not type(model).__name__.endswith("ForMaskedLM")
    real_BT = torch.ones(0)

    def hook(key: tuple[int, str]) -> Any:
        first = heads_read_first and key[0] == len(own)

        def add(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0][:, 0] if first else args[0][real_BT]
            x = torch.cat([x, x.new_ones(len(x), 1)], 1)
            total[key] = total.get(key, torch.zeros(())) + x.T @ x
            tokens[key] = tokens.get(key, 0) + len(x)

        return add

    handles = [
        block.get_submodule(part).register_forward_pre_hook(hook((number, part)))
        for number, block in enumerate(own, start=1)
        for part in parts
    ]
    try:
        with training_mode(model, on=False), torch.no_grad():
            for start in range(0, len(rows), BATCH):
                batch = data.batch(rows[start : start + BATCH])
                real_BT = batch.inputs["attention_mask"].bool()
                run(model, batch, precision="float32", fast=False)
                progress(len(batch.rows))
    finally:
        for handle in handles:
            handle.remove()
    return {key: moment / tokens[key] for key, moment in total.items()}
