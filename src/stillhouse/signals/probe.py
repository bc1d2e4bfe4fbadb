"""How near the gradient against a sparse teacher is to the dense one, measured on a probe batch.

An estimator is wrong in two ways: its bias stays, however many tokens a step has; its noise
averages out over tokens and steps. Both are measured for the weights that all tokens share: the
head's, and a linear layer that would lie right below it, whose gradient is hidden^T d(hidden).

Axes: N scored rows, K choices, H hidden, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stillhouse.core.head import Factored
from stillhouse.core.types import Estimator, Sparse
from stillhouse.numerics.divergences import soften
from stillhouse.numerics.sparse import divergence
from stillhouse.numerics.wide import forward_kl_wide

PARTS = 8  # of the batch, whose gradients are compared: what they share is bias
HORIZON = 10  # steps over which a gradient's noise averages out: Adam's first moment, beta 0.9
Loss = Callable[[Tensor, slice], Tensor]  # of some rows' scores, summed


@dataclass(frozen=True)
class Quality:
    """One estimator's gradient of forward KL against the dense one. `angle` (degrees) and `norm`
    (the ratio) are of the head's weight and the hidden states together, of this batch. `bias` and
    `noise` are errors of the shared weights' gradient relative to the dense one's length: what
    stays, and the standard deviation for one such batch."""

    angle: float
    norm: float
    head_angle: float
    hidden_angle: float
    bias: float
    noise: float

    def error(self, batches: float) -> float:
        """The relative error of a gradient averaged over so many such batches."""
        return math.sqrt(self.bias**2 + self.noise**2 / batches)


@dataclass(frozen=True)
class Probe:
    """What was measured: on how many tokens, the teacher's mean probability that is kept exactly,
    bytes of a token on disk, and each estimator."""

    tokens: int
    covered: float
    bytes_per_token: float
    estimators: dict[str, Quality]


def measure(
    teacher_NK: Float[Tensor, "N K"],
    student: Factored,
    kept: Sparse,
    *,
    bytes_per_token: float,
) -> Probe:
    """Compares each estimator that `kept` allows with the dense forward KL, both at its
    temperature. Raises ValueError for fewer than 2 tokens."""
    N, T = kept.top_ids_NT.shape
    if N < 2 or len(teacher_NK) != N or len(student) != N:
        raise ValueError(
            f"a probe needs 2 tokens or more, alike for all, got {len(teacher_NK)} of the teacher, "
            f"{len(student)} of the student and {N} kept"
        )
    names: list[Estimator] = []
    if T:
        names.extend(("tail", "renormalised"))
    if kept.drawn_ids_ND.shape[1]:
        names.append("sampled")
    found = {
        name: _compare(student, _dense(teacher_NK, kept), _sparse(kept, name)) for name in names
    }
    return Probe(N, float(kept.top_p_NT.sum(-1).mean()), bytes_per_token, found)


def choose_estimator(
    probe: Probe, *, tokens_per_step: int | None = None, horizon: int = HORIZON
) -> tuple[Estimator, str]:
    """ "tail" or "sampled", whichever gradient of forward KL is nearer to the dense one when
    averaged over `horizon` steps (of as many tokens as the probe has unless told), and why."""
    step = tokens_per_step or probe.tokens
    batches = horizon * step / probe.tokens
    sized = {
        name: quality.error(batches)
        for name, quality in probe.estimators.items()
        if name != "renormalised"
    }
    best: Estimator = "tail" if min(sized, key=sized.__getitem__) == "tail" else "sampled"
    errors = " and ".join(
        f"{sized[name]:.1%} with {name!r} (bias {found.bias:.1%}, noise {found.noise:.1%})"
        for name, found in probe.estimators.items()
        if name in sized
    )
    why = (
        f"estimator {best!r}: over {horizon} steps of {step:,} tokens the gradient is off by "
        f"{errors}, measured on {probe.tokens:,} tokens"
    )
    return best, why


def _dense(teacher_NK: Tensor, kept: Sparse) -> Loss:
    def loss(scores_NK: Tensor, rows: slice) -> Tensor:
        mine, theirs = (soften(x, kept.temperature) for x in (scores_NK, teacher_NK[rows]))
        return forward_kl_wide(mine, theirs[:, : mine.shape[1]]).sum()

    return loss


def _sparse(kept: Sparse, estimator: Estimator) -> Loss:
    def loss(scores_NK: Tensor, rows: slice) -> Tensor:
        part = kept.part(rows)
        return divergence(
            "forward_kl",
            scores_NK,
            part.top_ids_NT,
            part.top_p_NT,
            part.tail_N,
            part.drawn_ids_ND,
            estimator=estimator,
            temperature=kept.temperature,
        ).sum()

    return loss


def _compare(student: Factored, dense: Loss, estimated: Loss) -> Quality:
    """The batch part by part: of each both gradients, whose errors are apart by noise alone."""
    N = len(student)
    edges = torch.linspace(0, N, min(PARTS, N) + 1).long().tolist()
    spans = [slice(*ends) for ends in pairwise(edges)]
    hidden = torch.zeros(3, dtype=torch.float64)
    shared: list[_Sums] = [_Sums(), _Sums()]
    for rows in spans:
        (mine_VH, mine_NH), (theirs_VH, theirs_NH) = (
            _gradients(student, loss, rows) for loss in (estimated, dense)
        )
        x_NH = student.hidden_NH[rows].detach().float()
        shared[0].add(mine_VH, theirs_VH)
        shared[1].add(x_NH.T @ mine_NH, x_NH.T @ theirs_NH)
        hidden += _products(mine_NH, theirs_NH)
    head = _products(shared[0].mine, shared[0].theirs)
    angle, norm = _angle(head + hidden)
    squares = [sums.bias_and_noise(len(spans)) for sums in shared]
    bias, noise = (math.sqrt(sum(of) / len(of)) for of in zip(*squares, strict=True))
    return Quality(angle, norm, _angle(head)[0], _angle(hidden)[0], bias, noise)


@dataclass
class _Sums:
    """Over parts: both gradients, and the squared lengths of their differences."""

    mine: Any = 0.0
    theirs: Any = 0.0
    squares: float = 0.0

    def add(self, mine: Tensor, theirs: Tensor) -> None:
        self.mine, self.theirs = self.mine + mine, self.theirs + theirs
        self.squares += float((mine - theirs).double().square().sum())

    def bias_and_noise(self, parts: int) -> tuple[float, float]:
        """Squared, relative to the dense gradient (as it is where that is 0). The bias is from
        products of different parts' errors, whose noise is independent: an estimate that may fall
        below 0, and is 0 then."""
        error = torch.as_tensor(self.mine - self.theirs).double().square().sum().item()
        dense = torch.as_tensor(self.theirs).double().square().sum().item() or 1.0
        bias = max(0.0, (error - self.squares) / (parts * (parts - 1)))
        noise = max(0.0, self.squares - parts * bias)  # below 0 by rounding only
        return bias * parts**2 / dense, noise / dense


def _gradients(student: Factored, loss: Loss, rows: slice) -> tuple[Tensor, ...]:
    """Of the head's weight, and of the rows' hidden states. float32."""
    head, hidden_NH = student.head, student.hidden_NH[rows].detach().float().requires_grad_()
    weight_VH = head.weight_VH.detach().float().requires_grad_()
    bias_V = None if head.bias_V is None else head.bias_V.detach().float()
    scores_NK = replace(head, weight_VH=weight_VH, bias_V=bias_V)(hidden_NH)
    return torch.autograd.grad(loss(scores_NK, rows), (weight_VH, hidden_NH))


def _products(mine: Tensor, theirs: Tensor) -> Float[Tensor, " 3"]:
    """mine . theirs, mine . mine, theirs . theirs: they add up where vectors are joined."""
    a, b = mine.double().flatten(), theirs.double().flatten()
    return torch.stack([a @ b, a @ a, b @ b])


def _angle(products: Float[Tensor, " 3"]) -> tuple[float, float]:
    """Degrees, and the ratio of lengths; 0 and 0 where a student is its teacher's copy."""
    across, mine, theirs = products.tolist()
    if not mine * theirs:
        return 0.0, 0.0
    cosine = across / math.sqrt(mine * theirs)
    return math.degrees(math.acos(min(1.0, max(-1.0, cosine)))), math.sqrt(mine / theirs)
