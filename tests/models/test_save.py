"""A model's folder: whole, or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny
from limited import file_size
from stillhouse.core.errors import RunError
from stillhouse.models.load import load_classifier
from stillhouse.models.save import save_model


@pytest.mark.parametrize("there", [False, True])
def test_a_model_that_does_not_fit_is_one_line_and_leaves_nothing(
    tmp_path: Path, *, there: bool
) -> None:
    folder, model = tmp_path / "student", tiny.model("bert", layers=1, seed=1)
    before: dict[str, bytes] = {}
    if there:
        save_model(tiny.model("bert", layers=2), tiny.tokenizer(), folder)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with file_size(4_000), pytest.raises(RunError) as caught:
        save_model(model, tiny.tokenizer(), folder)
    assert str(caught.value).startswith(f"file too large: {folder} is not written")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == (["student"] if there else [])
    assert {path.name: path.read_bytes() for path in folder.glob("*")} == before
    save_model(model, tiny.tokenizer(), folder)
    assert len(list(tmp_path.iterdir())) == 1
    loaded = load_classifier(str(folder))
    for mine, theirs in zip(model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(mine, theirs)
