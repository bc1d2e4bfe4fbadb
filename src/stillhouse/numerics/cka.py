"""How alike two representations of the same examples are, whatever their widths."""

# Axes: N examples, G and H the widths of the two representations, X and Y how many there are of
# each side. _ is checked in the function.

from __future__ import annotations

from collections.abc import Sequence

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
    return cka_matrix([x_NG], [y_NH])[0, 0]


def cka_matrix(
    xs: Sequence[Float[Tensor, "N _"]], ys: Sequence[Float[Tensor, "N _"]]
) -> Float[Tensor, "X Y"]:
    """`linear_cka` of each of `xs` with each of `ys`, each centred and measured once."""
    norm = torch.linalg.matrix_norm
    xs, ys = [_centred(x) for x in xs], [_centred(y) for y in ys]
    own_X = torch.stack([norm(x.T @ x) for x in xs])
    own_Y = torch.stack([norm(y.T @ y) for y in ys])
    both_XY = torch.stack([torch.stack([norm(y.T @ x) for y in ys]) for x in xs]).square()
    scale_XY = own_X[:, None] * own_Y
    return both_XY / scale_XY.masked_fill(scale_XY == 0, 1.0)


def _centred(x_NG: Tensor) -> Tensor:
    # The first row is taken off first, so that a constant feature becomes exactly 0.
    x_NG = x_NG.double()
    x_NG = x_NG - x_NG[:1]
    return x_NG - x_NG.mean(0)
