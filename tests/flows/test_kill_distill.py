"""A distillation killed at any moment and started again ends bit for bit where an uninterrupted one
does. STILLHOUSE_KILLS says how often it is killed.
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import killing
import tiny

KILLS = int(os.environ.get("STILLHOUSE_KILLS", "3"))
SCRIPT = """
import json, sys
from pathlib import Path
import torch
from stillhouse.core.config import DistillConfig
from stillhouse.flows.distill import distill
torch.set_num_threads(1)
print("ready", flush=True)
distill(DistillConfig.model_validate(json.loads(sys.argv[1])), Path(sys.argv[2]))
"""


def results(out: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Weights and answers of every finished training."""
    return {
        path.name: load_file(path) for path in sorted((out / "checkpoints").glob("*.safetensors"))
    }


def log(out: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "examples_per_s"} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("embeddings", ["rows", "dense"])
def test_a_killed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path, embeddings: str) -> None:
    teacher = tiny.save(tmp_path / "teacher", "bert", layers=4)
    data = tiny.reviews(tmp_path / "reviews.csv", 400)
    changes = {
        "training": {
            "steps": 250,
            "embeddings": embeddings,
            "checkpoint_s": 0.2,
            "patience": 4,
            "evaluations": 20,
            "log_every": 7,
            "precision": "bf16",
        },
        "evaluation": {"seeds": [0, 1], "baseline": True},
    }
    whole, killed = (tiny.config(teacher, data, tmp_path / n, **changes) for n in ("c1", "c2"))
    process = killing.start(SCRIPT, whole.model_dump_json(), str(tmp_path / "whole"))
    started = time.perf_counter()
    assert process.end() == 0
    seconds = time.perf_counter() - started
    draw = random.Random(embeddings)
    arguments = (SCRIPT, killed.model_dump_json(), str(tmp_path / "killed"))
    for _ in range(KILLS):
        process = killing.fork(*arguments)
        time.sleep(draw.uniform(0, seconds / 2))
        process.kill()
    assert killing.start(*arguments).end() == 0
    expected, found = results(tmp_path / "whole"), results(tmp_path / "killed")
    assert expected.keys() == found.keys()
    assert len(expected) == 4
    for name, tensors in expected.items():
        assert tensors.keys() == found[name].keys()
        for key, tensor in tensors.items():
            assert torch.equal(found[name][key], tensor), (name, key)
    assert log(tmp_path / "killed") == log(tmp_path / "whole")
