"""forward_kl over a vocabulary: the same number, a few rows at a time.

Over tens of thousands of choices the accurate sum takes many passes over memory; taken row by row
it stays in the processor's cache, and its gradient, the student's probabilities minus the
teacher's, needs one tensor where autograd would keep ten.

Axes: N scored rows, K choices.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stillhouse.numerics.divergences import forward_kl

WIDE = 2048  # choices from which on this is faster
CHUNK = {"cpu": 1 << 17}  # elements at once; elsewhere 1 << 26


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
