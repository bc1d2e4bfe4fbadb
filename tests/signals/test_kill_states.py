"""A process that keeps states, killed at any moment: the next one ends with equal bytes."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

import killing
from stillhouse.signals.states import ENTRY

KILLS = int(os.environ.get("STILLHOUSE_KILLS", "3"))
ROWS, LAYERS, WIDTH = 600, (1, 2), 32
# Its arguments: where, in what, and after how many written bytes it kills itself (0: never).
SCRIPT = f"""
import os, signal, sys
from pathlib import Path
import numpy as np
import torch
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import tiny
from signals.test_states import data, teacher
from stillhouse.core.config import LabelConfig
from stillhouse.core.types import Tap
from stillhouse.signals.kept import keep_states
from stillhouse.signals.states import StatesCache
root, dtype, left = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
form = dict(layers={LAYERS}, width={WIDTH}, pooled=False, dtype=dtype)
rows = data([text for text, _ in tiny.sentences({ROWS})])
live = teacher(rows, reads={{Tap("hidden", layer) for layer in {LAYERS}}})
cache = StatesCache(root, {{"teacher": "t"}}, **form)
write = os.write
def dying(file, data):
    global left
    if left and len(data) >= left:
        write(file, data[:left])
        os.kill(os.getpid(), signal.SIGKILL)
    left = left and left - len(data)
    return write(file, data)
os.write = dying
print("ready", flush=True)
keep_states(live, cache, LabelConfig(batch_size=4))
"""


def content(root: Path) -> tuple[bytes, bytes]:
    (folder,) = (root / "states").iterdir()
    return (folder / "states.bin").read_bytes(), (folder / "index.bin").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_killed_at_any_moment_it_loses_and_repeats_nothing(tmp_path: Path, dtype: str) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = killing.start(SCRIPT, str(whole), dtype, "0")
    started = time.perf_counter()
    assert process.end() == 0
    seconds = time.perf_counter() - started
    expected = content(whole)
    assert len(expected[1]) == ROWS * ENTRY.itemsize
    draw, records = random.Random(0), [0]
    for kill in range(KILLS + 1):
        if kill % 2:  # in the middle of a write, of a record or of an entry
            size = draw.randrange(1, sum(map(len, expected)) // 4)
            code = killing.fork(SCRIPT, str(killed), dtype, str(size)).end()
        else:
            process = killing.fork(SCRIPT, str(killed), dtype, "0")
            time.sleep(draw.uniform(0, seconds / 2))
            code = process.kill()
        assert code in (0, -signal.SIGKILL)
        if (killed / "states").exists() and any(killed.glob("states/*/index.bin")):
            found = content(killed)
            records.append(len(found[1]) // ENTRY.itemsize)
            assert (
                found[1][: records[-1] * ENTRY.itemsize]
                == expected[1][: records[-1] * ENTRY.itemsize]
            )
    assert records == sorted(records), "states were lost"
    assert killing.start(SCRIPT, str(killed), dtype, "0").end() == 0
    assert content(killed) == expected


@pytest.mark.slow
def test_killed_in_the_write_of_an_entry_it_loses_and_repeats_nothing(tmp_path: Path) -> None:
    """The first batch's entries, torn after each of these many bytes."""
    whole = tmp_path / "whole"
    assert killing.start(SCRIPT, str(whole), "int8", "0").end() == 0
    expected = content(whole)
    entries = 4 * ENTRY.itemsize
    first = int.from_bytes(expected[1][entries + 16 : entries + 24], "little")  # its records' end
    for kept in (0, ENTRY.itemsize + 1, entries):
        killed = tmp_path / f"killed-{kept}"
        process = killing.fork(SCRIPT, str(killed), "int8", str(first + kept))
        assert process.end() == -signal.SIGKILL
        data, index = content(killed)
        assert (len(data), len(index)) == (first, kept)
        assert killing.fork(SCRIPT, str(killed), "int8", "0").end() == 0
        assert content(killed) == expected
