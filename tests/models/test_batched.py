"""Perceptrons side by side are what each is alone.

Axes: M members, B examples, K choices.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stillhouse.core.config import TrainingConfig
from stillhouse.core.terms import TermConfig
from stillhouse.core.types import Batch, StudentOutput
from stillhouse.models.batched import BatchedMLP
from stillhouse.training.loop import fit
from stillhouse.training.objective import build

WIDTHS = (6, 8, 5, 3)


class Own:
    """Each member its own rows of random vectors."""

    def __init__(self, members: list[int]) -> None:
        draw = torch.Generator().manual_seed(0)
        self.vectors_MND = torch.randn(4, 40, 6, generator=draw)
        self.labels_MN = torch.randint(0, 3, (4, 40), generator=draw)
        self.members = members
        self.lengths = np.ones(40, np.int64)
        self.keys_N2 = np.zeros((40, 2), "<u8")
        self.gold_N = torch.zeros(40, dtype=torch.long)

    def __len__(self) -> int:
        return 40

    def batch(self, rows: np.ndarray, rng: Any = None) -> Batch:
        vectors = self.vectors_MND[self.members][:, rows].flatten(0, 1)
        return Batch({"vectors": vectors}, rows, self.labels_MN[self.members][:, rows].flatten())

    def places(self, rows: np.ndarray) -> np.ndarray:
        return rows


def model(members: list[int]) -> BatchedMLP:
    found = BatchedMLP(len(members), WIDTHS)
    for place, member in enumerate(members):
        found.draw(place, 100 + member)
    return found


def train(members: list[int], masks: dict[str, Tensor]) -> BatchedMLP:
    found = model(members)
    config = TrainingConfig(
        steps=25, batch_size=10, lr=0.02, warmup=0.0, decay="constant", weight_decay=0.0,
        clip=None, precision="float32", embeddings="dense", select="last",
    )  # fmt: skip

    def forward(net: Any, batch: Batch, rng: Any) -> StudentOutput:
        return StudentOutput(net(batch.inputs["vectors"]))

    goal = build([TermConfig(kind="gold")], choices=3, signal=None, has_gold=True)
    own = {name: mask[members] for name, mask in masks.items()}
    fit(found, Own(members), goal, None, config, seed=0, forward=forward, masks=own)
    return found


@pytest.mark.parametrize("masked", [False, True])
def test_members_train_as_each_does_alone(masked: bool) -> None:
    draw = torch.Generator().manual_seed(5)
    masks = {}
    if masked:
        masks = {"weights.0": torch.rand(4, 8, 6, generator=draw) > 0.5}
    together = train([0, 1, 2, 3], masks)
    for member in range(4):
        alone = train([member], masks)
        for mine, theirs in zip(together.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(mine[member], theirs[0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together.weights[0][0], together.weights[0][1], atol=0.05)


def test_a_member_is_a_plain_perceptron() -> None:
    found = model([0, 1])
    with torch.no_grad():
        for bias in found.biases:
            bias.normal_()
    x_MBD = torch.randn(2, 7, 6)
    scores = found(x_MBD.flatten(0, 1)).view(2, 7, 3)
    for member in range(2):
        h = x_MBD[member]
        for number, (w, b) in enumerate(zip(found.weights, found.biases, strict=True)):
            h = torch.nn.functional.linear(h, w[member], b[member])
            h = h.relu() if number < 2 else h
        torch.testing.assert_close(scores[member], h)


def test_weights_are_glorots_and_follow_from_the_seed() -> None:
    found, again = BatchedMLP(3, (300, 400)), BatchedMLP(1, (300, 400))
    for place, seed in enumerate((1, 2, 1)):
        found.draw(place, seed)
    again.draw(0, 2)
    assert torch.equal(found.weights[0][0], found.weights[0][2])
    assert torch.equal(found.weights[0][1], again.weights[0][0])
    assert not torch.equal(found.weights[0][0], found.weights[0][1])
    assert float(found.weights[0].detach().std()) == pytest.approx((2 / 700) ** 0.5, rel=0.01)
    assert torch.count_nonzero(found.biases[0]) == 0
