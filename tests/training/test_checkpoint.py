"""Checkpoints hold what was saved, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stillhouse.core.errors import RunError
from stillhouse.training import checkpoint


def test_tensors_and_facts_come_back(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    tensors = {
        "a": shared,
        "again": shared,
        "t": torch.arange(6).view(2, 3).T,
        "half": torch.ones(2, dtype=torch.bfloat16),
        "none": torch.empty(0),
        "n": torch.tensor(3),
    }
    facts = {"step": 3, "best": None, "warnings": ["a"], "score": 0.1 + 0.2}
    checkpoint.save(tmp_path / "c.safetensors", tensors, facts)
    found = checkpoint.load(tmp_path / "c.safetensors")
    assert found is not None
    assert found[1] == facts
    for name, tensor in tensors.items():
        assert torch.equal(found[0][name], tensor)
        assert found[0][name].dtype == tensor.dtype
    assert checkpoint.load(tmp_path / "other") is None


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is not written") as caught:
        checkpoint.save(tmp_path / "file" / "c.safetensors", {"a": torch.ones(1)}, {})
    assert "\n" not in str(caught.value)


def test_a_damaged_checkpoint_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, {"a": torch.ones(100)}, {})
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(RunError, match="damaged") as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)
