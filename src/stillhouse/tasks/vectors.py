"""Plain vectors and images as inputs of a classification. Axes: N rows, D width."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stillhouse.core.errors import DataError


class Vectors:
    """Rows of a float array as model inputs named `vectors`."""

    def __init__(self, vectors_ND: np.ndarray) -> None:
        if vectors_ND.ndim != 2:
            raise DataError(f"vectors are rows of one width, got an array of {vectors_ND.shape}")
        self.vectors_ND = vectors_ND
        self.lengths = np.ones(len(vectors_ND), dtype=np.int64)

    def inputs(self, rows: np.ndarray) -> dict[str, Tensor]:
        return {"vectors": torch.from_numpy(self.vectors_ND[rows].astype(np.float32, copy=False))}

    def keys(self) -> np.ndarray:
        """Content keys of the rows, as text rows have them."""
        digests = [
            hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in self.vectors_ND
        ]
        return np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2)


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file (the MNIST format), gzipped or not. Raises DataError."""
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise DataError(f"{path} is not an IDX file of unsigned bytes")
    axes = raw[3]
    shape = np.frombuffer(raw, ">u4", count=axes, offset=4)
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * axes)
    if values.size != int(np.prod(shape)):
        raise DataError(f"{path} is cut short: {values.size} values for a shape of {tuple(shape)}")
    return values.reshape([int(n) for n in shape])
