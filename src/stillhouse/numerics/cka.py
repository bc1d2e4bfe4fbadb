"""How alike two representations of the same examples are, whatever their widths."""

# Axes: N examples, G and H the widths of the two representations. _ is checked in the function.

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def linear_cka(x_NG: Float[Tensor, "N G"], y_NH: Float[Tensor, "_ H"]) -> Float[Tensor, ""]:
    """Linear CKA, in [0, 1], in float64.

        |y^T x|^2 / (|x^T x| |y^T y|), Frobenius norms, features centred

    Kornblith et al. 2019 sec. 3. Unchanged by rotating or scaling either side, 1 where they agree
    up to that. A representation that is the same for every example has nothing to compare: 0.
    With fewer examples than features it is high for unrelated representations, too. Raises
    ValueError where the numbers of examples differ.
    """
    if len(x_NG) != len(y_NH):
        raise ValueError(f"CKA compares the same examples, got {len(x_NG)} and {len(y_NH)}")
    x_NG, y_NH = _centred(x_NG), _centred(y_NH)
    norm = torch.linalg.matrix_norm
    scale = norm(x_NG.T @ x_NG) * norm(y_NH.T @ y_NH)
    return norm(y_NH.T @ x_NG).square() / scale.masked_fill(scale == 0, 1.0)


def _centred(x_NG: Tensor) -> Tensor:
    # The first row is taken off first, so that a constant feature becomes exactly 0.
    x_NG = x_NG.double()
    x_NG = x_NG - x_NG[:1]
    return x_NG - x_NG.mean(0)
