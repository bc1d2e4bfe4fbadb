"""Losses over a vocabulary: the same numbers, a few rows at a time.

Over tens of thousands of choices the accurate sum takes many passes over memory; taken row by row
it stays in the processor's cache, and its gradient, the student's probabilities minus the
teacher's, needs one tensor where autograd would keep ten. The functions whose names end in _ put
the gradient where the student's scores were.

Axes: N scored rows, K choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stillhouse.numerics.divergences import forward_kl

WIDE = 2048  # choices from which on this is faster
CHUNK = {"cpu": 1 << 17}  # elements at once; elsewhere 1 << 26
PIECE = {"cpu": 1 << 18}  # likewise, of the functions that write over their input
LOW, HIGH = 1e-20, 1e37  # sums of float32 exponentials from which nothing that counts is lost
SURE = 0.01  # nats from which on the short sum has lost less than 1e-4 of itself to rounding


def forward_kl_wide(
    student_NK: Float[Tensor, "N K"], teacher_NK: Float[Tensor, "N K"]
) -> Float[Tensor, " N"]:
    """KL(teacher || student) per row, nats: `forward_kl`, without its second derivative."""
    return _WideKL.apply(student_NK, teacher_NK.detach())


class _WideKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
        N, K = student_NK.shape
        step = max(1, CHUNK.get(student_NK.device.type, 1 << 26) // K)
        slope_NK = torch.empty_like(student_NK) if ctx.needs_input_grad[0] else None
        rows = []
        for first in range(0, N, step):
            part = slice(first, first + step)
            student, teacher = student_NK[part], teacher_NK[part]
            rows.append(forward_kl(student, teacher))
            if slope_NK is not None:
                wide = rows[-1].dtype
                slope_NK[part] = student.softmax(-1, dtype=wide) - teacher.softmax(-1, dtype=wide)
        ctx.save_for_backward(slope_NK)
        return torch.cat(rows) if rows else forward_kl(student_NK, teacher_NK)

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():
            raise RuntimeError("forward_kl_wide has no second derivative (create_graph=True)")
        (slope_NK,) = ctx.saved_tensors
        return slope_NK * grad_N.to(slope_NK.dtype)[:, None], None


def pieces(rows: int, choices: int, device: str) -> list[slice]:
    """Slices of rows that the processor's cache holds."""
    step = max(1, PIECE.get(device, 1 << 26) // choices)
    return [slice(first, min(first + step, rows)) for first in range(0, rows, step)]


def forward_kl_slope_(
    student_NK: Float[Tensor, "N K"], teacher_NK: Float[Tensor, "N K"], *, scale: float = 1.0
) -> Float[Tensor, " N"]:
    """KL(teacher || student) per row, nats, as `forward_kl`. student_NK becomes the gradient by it
    times `scale`: the student's probabilities minus the teacher's. teacher_NK may be shifted.

    The sum p (log p - log q) is taken without its logarithms; rows in which little of it would be
    left of its rounding (and those with a choice at -inf) are left to `forward_kl`.
    """
    q_NK, sumq_N1 = _exponentials_(student_NK)
    p_NK, sump_N1 = _exponentials_(teacher_NK)
    # Not through a difference of rounded logarithms, which would be most of a small KL.
    shift_N = (sumq_N1.double().log() - sump_N1.double().log()).squeeze(-1)
    work_NK = teacher_NK - student_NK
    kl_N = (work_NK.mul_(p_NK).sum(-1) / sump_N1.squeeze(-1)).double() + shift_N
    near_N = (~(kl_N > SURE)).nonzero().squeeze(-1)  # NaN too
    kl_N = kl_N.to(student_NK.dtype)
    if len(near_N):
        kl_N[near_N] = forward_kl(student_NK[near_N], teacher_NK[near_N])
    # Both sides by the same steps: equal scores leave exactly 0.
    torch.sub(q_NK.mul_(scale / sumq_N1), p_NK.mul_(scale / sump_N1), out=student_NK)
    return kl_N


def cross_entropies_slope_(
    scores_NK: Float[Tensor, "N K"],
    targets: Sequence[tuple[Int[Tensor, " N"], Float[Tensor, " N"]]],
) -> list[Float[Tensor, " N"]]:
    """-log of each target's probability per row, nats. Each has a weight a row; scores_NK becomes
    the gradient of the weighted sum of all: (sum of weights) probabilities - weights at targets."""
    scores_NK.sub_(scores_NK.amax(-1, keepdim=True))  # then no rounding makes a value negative
    picked = [scores_NK.gather(-1, target_N[:, None]) for target_N, _ in targets]
    sum_N1 = scores_NK.exp_().sum(-1, keepdim=True)
    values = [(sum_N1.log() - found_N1).squeeze(-1) for found_N1 in picked]
    scores_NK.mul_(torch.stack([weight_N for _, weight_N in targets]).sum(0)[:, None] / sum_N1)
    for target_N, weight_N in targets:
        scores_NK.scatter_add_(-1, target_N[:, None], -weight_N[:, None])
    return values


def _exponentials_(scores_NK: Tensor) -> tuple[Tensor, Tensor]:
    """e^score and its sum per row. Scores are shifted to a maximum of 0 where they need it; most
    don't, and a pass to find the maximum takes as long as the exponentials."""
    on_cpu = scores_NK.device.type == "cpu"  # elsewhere, to look would be to wait
    if on_cpu:
        found_NK = scores_NK.exp()
        sum_N1 = found_NK.sum(-1, keepdim=True)
        if not len(sum_N1) or (float(sum_N1.min()) > LOW and float(sum_N1.max()) < HIGH):
            return found_NK, sum_N1
    scores_NK.sub_(scores_NK.amax(-1, keepdim=True))
    found_NK = scores_NK.exp()
    return found_NK, found_NK.sum(-1, keepdim=True)
