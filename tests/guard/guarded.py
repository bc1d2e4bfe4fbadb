"""What tests of the guard share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from stillhouse.guard.guard import Guard
from stillhouse.guard.model import Truth

Made = Callable[..., Guard]


def sure(share: float = 0.9, *, odd: float | None = None) -> Callable[[Any], list[Truth]]:
    """A model of two classes that always says the same."""
    return lambda examples: [
        Truth(probabilities_K=np.array([1 - share, share]), odd=odd) for _ in examples
    ]
