"""A search for tickets killed at any moment and started again ends bit for bit where an
uninterrupted one does, and does no finished training again."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import killing
import tiny
from stillhouse.core.settings import parse
from stillhouse.tickets.config import TicketsConfig

KILLS = int(os.environ.get("STILLHOUSE_KILLS", "3"))
SCRIPT = """
import json, sys
from pathlib import Path
import torch
from stillhouse.tickets.config import TicketsConfig
from stillhouse.tickets.runs import run_tickets
torch.set_num_threads(1)
print("ready", flush=True)
run_tickets(TicketsConfig.model_validate(json.loads(sys.argv[1])), Path(sys.argv[2]))
"""


def results(out: Path) -> dict[str, dict[str, torch.Tensor]]:
    """What is left of a search: answers, masks, the ticket and the trained one."""
    return {str(path.relative_to(out)): load_file(path) for path in out.rglob("*.safetensors")}


@pytest.mark.slow
@pytest.mark.parametrize("score", ["magnitude", "movement"])
def test_a_killed_search_ends_where_an_uninterrupted_one_does(tmp_path: Path, score: str) -> None:
    values = {
        "model": str(tiny.save(tmp_path / "model", layers=2)),
        "data": {"path": str(tiny.reviews(tmp_path / "reviews.csv", 200)), "max_length": 32},
        "training": {"steps": 120, "batch_size": 16, "lr": 1e-3, "checkpoint_s": 0.2},
        "prune": {"sparsity": 0.6, "rounds": 3, "score": score, "rewind": 10},
        "evaluation": {"seeds": [0], "resamples": 50},
        "keep_checkpoints": True,
    }
    whole, killed = (
        parse(TicketsConfig, {**values, "cache": str(tmp_path / name)}) for name in ("c1", "c2")
    )

    process = killing.start(SCRIPT, whole.model_dump_json(), str(tmp_path / "whole"))
    started = time.perf_counter()
    assert process.end() == 0
    seconds = time.perf_counter() - started
    draw = random.Random(score)
    arguments = (SCRIPT, killed.model_dump_json(), str(tmp_path / "killed"))
    for _ in range(KILLS):
        process = killing.fork(*arguments)
        time.sleep(draw.uniform(0, seconds / 2))
        process.kill()
    assert killing.start(*arguments).end() == 0
    expected, found = results(tmp_path / "whole"), results(tmp_path / "killed")
    assert expected.keys() == found.keys()
    assert len(expected) > 8
    for name, tensors in expected.items():
        assert tensors.keys() == found[name].keys()
        for key, tensor in tensors.items():
            assert torch.equal(found[name][key], tensor), (name, key)
