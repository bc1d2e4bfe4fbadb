"""Dropout whose random numbers cost little on a CPU.

torch draws Bernoulli numbers one after another on one core, which takes longer than the matrix
products of a small model. We compare 16 random bits an element with a threshold instead.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def keep_mask(shape: torch.Size, p: float, rng: np.random.Generator) -> Tensor:
    """True with probability 1 - p (to 1/65,536), one draw an element."""
    count = shape.numel()
    words = rng.integers(0, 2**64, size=-(-count // 4), dtype=np.uint64)
    bits = torch.from_numpy(words.view(np.int16)[:count]).view(shape)
    return bits >= round(p * 65536) - 32768


def dropout(x: Tensor, p: float, rng: np.random.Generator | None) -> Tensor:
    """`x` with a share p of its elements zeroed and the others scaled by 1/(1-p); without a
    generator, `x`. On an accelerator torch's own kernel is used."""
    if rng is None or p == 0.0:
        return x
    if x.device.type != "cpu":
        return torch.nn.functional.dropout(x, p, training=True)
    scale = keep_mask(x.shape, p, rng).to(x.dtype).mul_(1.0 / (1.0 - p))
    return x * scale
