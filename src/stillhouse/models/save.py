"""A model's folder, put in place whole."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase


def save_model(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """A folder that `from_pretrained` loads, put in place whole."""
    part = folder.parent / f".{folder.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)  # pyright: ignore[reportCallIssue]
    tokenizer.save_pretrained(part)
    folder.mkdir(parents=True, exist_ok=True)
    for file in part.iterdir():
        file.chmod(0o644)
        file.replace(folder / file.name)
    part.rmdir()
