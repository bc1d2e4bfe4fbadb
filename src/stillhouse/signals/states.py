"""A teacher's hidden states on disk, kept by content: read once, used by every seed and epoch.

A cache folder describes itself (states.json). A record in states.bin holds one row: its real
tokens' states, layer by layer; how records are kept, and what a kill leaves, says `records.py`.

Axes: N rows, L kept layers, B examples, T tokens, S tokens of all examples, H hidden.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stillhouse.core.errors import RunError
from stillhouse.core.types import States, Tap
from stillhouse.numerics.quantise import COMPUTED, DECODE, ENCODE
from stillhouse.signals.records import ENTRY as ENTRY
from stillhouse.signals.records import Records

StatesType = Literal["bf16", "int8"]


class StatesCache(Records):
    """One teacher's hidden states of `layers` under one setting; with `pooled`, of each row's
    first token only. `identity` is everything the states depend on, the tokens included."""

    def __init__(
        self,
        root: Path,
        identity: dict[str, object],
        *,
        layers: tuple[int, ...],
        width: int,
        pooled: bool,
        dtype: StatesType,
    ) -> None:
        if not layers or sorted(set(layers)) != list(layers) or layers[0] < 0:
            raise ValueError(f"layers must rise from 0 or more, got {layers}")
        form: dict[str, object] = {
            "layers": list(layers),
            "width": width,
            "pooled": pooled,
            "dtype": dtype,
        }
        self.layers, self.width, self.pooled, self.dtype = layers, width, pooled, dtype
        planes = {"bf16": (("<i2", width),), "int8": (("<f4", 1), ("|i1", width))}
        self._planes = [(np.dtype(kind), wide) for kind, wide in planes[dtype]]
        token_bytes = len(layers) * sum(kind.itemsize * wide for kind, wide in self._planes)
        super().__init__(root, "states", form, identity, token_bytes=token_bytes)

    def bytes_needed(self, lengths: np.ndarray) -> int:
        """What rows of so many tokens will take on the disk: give those that are `missing`."""
        tokens = len(lengths) if self.pooled else int(np.sum(lengths, dtype=np.int64))
        return tokens * self.token_bytes + len(lengths) * ENTRY.itemsize

    def require_room(self, needed: int) -> None:
        """Raises RunError, one line, if the disk has less than `needed` bytes and 1 GB free."""
        smaller = "int8, or live" if self.dtype == "bf16" else "live"
        self.require_free(needed, otherwise=f"label.states={smaller}")

    def records(self, states: States) -> list[bytes]:
        """What is kept of each example. Raises RunError if a value is not finite."""
        found = [states[Tap("hidden", layer)] for layer in self.layers]
        mask_BT = states.mask_BT
        x_LSH = torch.stack([x[:, 0] if self.pooled else x[mask_BT] for x in found])
        assert x_LSH.shape[-1] == self.width, (x_LSH.shape, self.width)
        x_LSH = x_LSH.to(COMPUTED[self.dtype])
        if not torch.isfinite(x_LSH).all():
            bad = int((~torch.isfinite(x_LSH)).any(-1).any(0).sum())
            raise RunError(
                f"the teacher's states are not finite in {bad} of {x_LSH.shape[1]} tokens: "
                "check its weights, or use --set label.precision=float32"
            )
        planes = [plane.cpu().numpy() for plane in ENCODE[self.dtype](x_LSH)]
        lengths = torch.ones(len(mask_BT)) if self.pooled else mask_BT.sum(-1).cpu()
        ends = lengths.long().cumsum(0).tolist()
        spans = zip([0, *ends[:-1]], ends, strict=True)
        return [b"".join(plane[:, a:b].tobytes() for plane in planes) for a, b in spans]

    def read(
        self, positions: np.ndarray, tokens: int, device: torch.device
    ) -> Float[Tensor, "L B T H"]:
        """The records at `positions`, with zeros up to `tokens`: bfloat16, or float32 if kept in
        int8. Raises RunError if one is damaged."""
        layers = len(self.layers)
        planes = [
            np.zeros((layers, len(positions), tokens, wide), kind) for kind, wide in self._planes
        ]
        for row, position in enumerate(positions.tolist()):
            record, start = self.record_at(position), 0
            length = int(self._entries["tokens"][position])
            for plane, (kind, wide) in zip(planes, self._planes, strict=True):
                stop = start + layers * length * wide * kind.itemsize
                held = record[start:stop].view(kind).reshape(layers, length, wide)
                plane[:, row, :length] = held
                start = stop
        return DECODE[self.dtype](*(torch.from_numpy(plane).to(device) for plane in planes))
