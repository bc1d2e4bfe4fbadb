"""Dropout whose random numbers cost little on a CPU.

torch draws Bernoulli numbers one after another on one core, which takes longer than the matrix
products of a small model. We compare 16 random bits an element with a threshold instead.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def scaled_mask(
    shape: torch.Size, p: float, rng: np.random.Generator, dtype: torch.dtype
) -> Tensor:
    """0 with probability p (to 1/65,536), else 1/(1-p), one draw an element.

    In bf16 the scale is rounded to 8 bits, and p follows it: the mean stays 1."""
    count = shape.numel()
    words = rng.integers(0, 2**64, size=-(-count // 4), dtype=np.uint64)
    bits = torch.from_numpy(words.view(np.int16)[:count]).view(shape)
    scale = torch.tensor(1.0 / (1.0 - p)).to(dtype)
    first_kept = max(1, round((1.0 - 1.0 / float(scale)) * 65536)) - 32768
    keep = bits.clamp_(first_kept - 1, first_kept).sub_(first_kept - 1)  # faster than comparing
    if dtype == torch.bfloat16:
        return keep.mul_(int(scale.view(torch.int16))).view(dtype)  # its bit pattern
    return keep.to(dtype).mul_(scale)


def dropout(x: Tensor, p: float, rng: np.random.Generator | None) -> Tensor:
    """`x` with a share p of its elements zeroed and the others scaled by 1/(1-p); without a
    generator, `x`. On an accelerator torch's own kernel is used."""
    if rng is None or p == 0.0:
        return x
    if x.device.type != "cpu":
        return torch.nn.functional.dropout(x, p, training=True)
    return x * scaled_mask(x.shape, p, rng, x.dtype)
