"""Several perceptrons of one shape, trained side by side as one model: a step of ten of them takes
little longer than a step of one.

Axes: M members, B examples of each, D vector width, K choices.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class BatchedMLP(nn.Module):
    """`members` perceptrons of ReLU layers of the given `widths` (inputs first, choices last).

    Weights are M x out x in. Each member sees its own part of the batch, and no operation mixes
    members: with an optimizer that works weight by weight (Adam), and without clipping, each
    trains as it would alone. Weights are drawn by Glorot's normal distribution, biases are 0.
    """

    def __init__(self, members: int, widths: Sequence[int]) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.members = members
        self.weights = nn.ParameterList(torch.empty(members, b, a) for a, b in pairs)
        self.biases = nn.ParameterList(torch.zeros(members, b) for _, b in pairs)

    @torch.no_grad()
    def draw(self, member: int, seed: int) -> None:
        """Gives one member the weights that follow from `seed`, whatever the others have."""
        source = torch.Generator().manual_seed(seed)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            fan_out, fan_in = weight.shape[1:]
            scale = math.sqrt(2 / (fan_in + fan_out))
            weight[member] = torch.randn(fan_out, fan_in, generator=source) * scale
            bias[member] = 0

    def forward(self, vectors: Float[Tensor, "MB D"]) -> Float[Tensor, "MB K"]:
        """Member m's examples are rows m B to (m + 1) B."""
        x_MBD = vectors.view(self.members, -1, vectors.shape[-1])
        last = len(self.weights) - 1
        for number, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            x_MBD = torch.baddbmm(b[:, None], x_MBD, w.transpose(1, 2))
            if number < last:
                x_MBD = x_MBD.relu()
        return x_MBD.flatten(0, 1)
