"""Memory that is kept between steps instead of being given back and asked for again."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from pathlib import Path

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # as in glibc's malloc.h
MEGABYTE = 2**20
EVERY = 50  # steps between looks at what is held
GROWN, MORE = 1.3, 512 * MEGABYTE  # over the least that was held: then pieces have piled up


@functools.cache
def keep_freed() -> None:
    """Lets glibc's malloc keep tensors' memory for the next step. By default it returns large
    blocks to the system, which clears each of their pages again: 5 to 8 % of a small model's
    training step. No effect on other C libraries."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(MMAP_THRESHOLD, 64 * MEGABYTE)
        mallopt(TRIM_THRESHOLD, 256 * MEGABYTE)
        mallopt(TOP_PAD, 64 * MEGABYTE)


class Pieces:
    """Gives back the free pieces between blocks that malloc keeps, where they have piled up.

    Steps of one shape use the same blocks again. Long passages, whose batches differ by hundreds of
    megabytes, leave holes that nothing fits: 3 GB become 9 in ten minutes."""

    def __init__(self) -> None:
        self._steps = 0
        self._least: int | None = None

    def step(self) -> None:
        """To be called after every step; it looks every 50th time."""
        self._steps += 1
        if self._steps % EVERY:
            return
        held = resident()
        if held is None:
            return
        if self._least is not None and held > GROWN * self._least + MORE:
            trim()
            held = resident() or held
        self._least = held if self._least is None else min(self._least, held)


def resident() -> int | None:
    """Bytes of this process in memory; None where the system doesn't say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def trim() -> None:
    """Lets malloc return its free pages. No effect on other C libraries."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
