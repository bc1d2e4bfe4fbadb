"""A model's folder, put in place whole."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from stillhouse.core.rundir import writes


def save_model(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """A folder that `from_pretrained` loads, put in place whole. Raises RunError where it can't be
    written; what was there is kept then, and nothing else is left."""
    part = folder.parent / f".{folder.name}.part"
    with writes(folder):
        shutil.rmtree(part, ignore_errors=True)
        try:
            model.save_pretrained(part)  # pyright: ignore[reportCallIssue]
            tokenizer.save_pretrained(part)
            folder.mkdir(parents=True, exist_ok=True)
            for file in part.iterdir():
                file.chmod(0o644)
                file.replace(folder / file.name)
        finally:
            shutil.rmtree(part, ignore_errors=True)
