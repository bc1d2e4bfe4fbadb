"""Where the records of contents lie in a cache, and which of them a request has to ask for.

Axes: N rows asked for, R records.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from stillhouse.core.rundir import write_json


class Keys:
    """The content keys of a cache's records, in their order."""

    def __init__(self, keys_R2: np.ndarray) -> None:
        self._keys_R2 = keys_R2
        self._order_R = np.argsort(keys_R2[:, 0], kind="stable")
        self._sorted_R = keys_R2[self._order_R, 0]

    def __len__(self) -> int:
        return len(self._keys_R2)

    def positions(self, keys_N2: np.ndarray) -> np.ndarray:
        """Where each key's record is, -1 for one that is not there."""
        if not len(self):
            return np.full(len(keys_N2), -1)
        at = np.searchsorted(self._sorted_R, keys_N2[:, 0]).clip(max=len(self) - 1)
        found = self._order_R[at]
        same = (self._keys_R2[found] == keys_N2).all(-1)
        return np.where(same, found, -1)

    def pending(self, keys_N2: np.ndarray, folder: Path) -> np.ndarray:
        """Whether each key had no record when this request was first made, which `folder` keeps.

        The same request resumed after a kill finds the same ones pending, so that it cuts the
        same batches: a teacher's low bits depend on which rows are asked together.
        """
        request = hashlib.blake2b(keys_N2.tobytes(), digest_size=12).hexdigest()
        path = folder / f"request-{request}.json"
        if path.exists():
            held = json.loads(path.read_text(encoding="utf-8"))
        else:
            held = {"records": len(self)}
            write_json(path, held)
        positions = self.positions(keys_N2)
        return (positions < 0) | (positions >= held["records"])


def first_of_each(keys_N2: np.ndarray, wanted_N: np.ndarray) -> np.ndarray:
    """Positions of the wanted keys, in order, no key twice."""
    wanted = np.flatnonzero(wanted_N)
    _, first = np.unique(keys_N2[wanted], axis=0, return_index=True)
    return wanted[np.sort(first)]
