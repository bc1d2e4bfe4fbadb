"""Vectors as what is kept of them, in two bytes an element or one, and back.

Axes: H the vectors' elements; any before it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Float32, Int8
from torch import Tensor

LARGEST = 127  # of an int8 value: symmetric, -128 is not used

Planes = tuple[Tensor, ...]  # what vectors are kept as; each ... x (H, or 1 for a scale)


def quantised(
    x: Float[Tensor, "... H"],
) -> tuple[Float32[Tensor, "... 1"], Int8[Tensor, "... H"]]:
    """A scale for each vector and whole numbers q in -127..127: x is nearly scale * q.

    No element is off by more than scale / 2, that is by the vector's largest one / 254. A vector
    of zeros has scale 0.
    """
    x = x.float()
    scale = x.abs().amax(-1, keepdim=True) / LARGEST
    divisor = torch.where(scale > 0, scale, 1.0)
    return scale, (x / divisor).round_().clamp_(-LARGEST, LARGEST).to(torch.int8)


def _bits(x: Tensor) -> Planes:
    return (x.view(torch.int16),)


def _values(bits: Tensor) -> Tensor:
    return bits.view(torch.bfloat16)


def _scaled(scale: Tensor, q: Tensor) -> Tensor:
    """In float32: in bfloat16 the product would be rounded once more, which int8's bound is not
    to pay for."""
    return scale * q


COMPUTED = {"bf16": torch.bfloat16, "int8": torch.float32}  # what is encoded
ENCODE: dict[str, Callable[[Tensor], Planes]] = {"bf16": _bits, "int8": quantised}
DECODE: dict[str, Callable[..., Tensor]] = {"bf16": _values, "int8": _scaled}
