"""A labelling process killed at any moment loses and repeats nothing, and ends with equal bytes."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import numpy as np
import pytest

import killing
import tiny

KILLS = int(os.environ.get("STILLHOUSE_KILLS", "3"))
SCRIPT = """
import json, sys
import torch
from stillhouse.core.config import DistillConfig
from stillhouse.flows.distill import label_only
torch.set_num_threads(1)
print("ready", flush=True)
label_only(DistillConfig.model_validate(json.loads(sys.argv[1])))
"""


def answers(store: Path) -> bytes:
    (folder,) = (store / "answers").iterdir()
    return b"".join(p.read_bytes() for p in sorted(folder.glob("*.bin")))


@pytest.mark.slow
def test_killed_labelling_loses_and_repeats_nothing(tmp_path: Path) -> None:
    teacher = tiny.save(tmp_path / "teacher", "bert", layers=4)
    data = tiny.reviews(tmp_path / "reviews.csv", 1200)
    changes = {"label": {"batch_size": 4, "precision": "bf16"}}
    whole, killed = (
        tiny.config(teacher, data, tmp_path / n, **changes) for n in ("whole", "killed")
    )
    process = killing.start(SCRIPT, whole.model_dump_json())
    started = time.perf_counter()
    assert process.end() == 0
    seconds = time.perf_counter() - started
    expected = answers(tmp_path / "whole")
    draw, sizes = random.Random(0), [0]
    for _ in range(KILLS):
        process = killing.fork(SCRIPT, killed.model_dump_json())
        time.sleep(draw.uniform(0, seconds))
        process.kill()
        found = sorted((tmp_path / "killed").glob("answers/*/*.bin"))
        sizes.append(sum(p.stat().st_size for p in found))
    assert sizes == sorted(sizes), "answers were lost"
    assert killing.start(SCRIPT, killed.model_dump_json()).end() == 0
    found = answers(tmp_path / "killed")
    assert found == expected
    keys = np.frombuffer(found, np.uint8).reshape(-1, 16 + 2 * 4 + 4)[:, :16]
    assert len(np.unique(keys, axis=0)) == len(keys), "answers were repeated"
