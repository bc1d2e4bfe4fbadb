"""Checkpoints: one safetensors file each, written whole or not at all; no pickle.

Axes: none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from stillhouse.core.errors import RunError
from stillhouse.core.rundir import atomic


def save(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Writes named tensors and JSON facts to `path`. Raises RunError if they can't be written."""
    held: dict[int, str] = {}
    own: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        shared = held.setdefault(tensor.data_ptr(), name) != name and tensor.numel() > 0
        own[name] = tensor.detach().cpu().clone() if shared else tensor.detach().cpu().contiguous()
    with atomic(path) as temporary:
        save_file(own, temporary, metadata={"facts": json.dumps(facts)})


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What `save` wrote, or None if there is nothing. Raises RunError if it was damaged since."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
        return load_file(path), facts
    except SafetensorError as error:
        raise RunError(f"{path} is damaged ({error}): delete it, and run again") from error
