"""What tests of the guard share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.core.private import write_new
from stillhouse.guard.guard import Guard
from stillhouse.guard.keys import Keys
from stillhouse.guard.model import Truth

Made = Callable[..., Guard]
SECRET = bytes(range(32))


def known_keys(path: Path) -> Keys:
    """An owner's file that is the same in every run, as are the marks that it draws."""
    path.unlink(missing_ok=True)
    write_new(path, SECRET.hex() + "\n")
    return Keys(SECRET)


def sure(share: float = 0.9, *, odd: float | None = None) -> Callable[[Any], list[Truth]]:
    """A model of two classes that always says the same."""
    return lambda examples: [
        Truth(probabilities_K=np.array([1 - share, share]), odd=odd) for _ in examples
    ]
