"""States read in families whose blocks are unlike BERT's: right, or refused in one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from families import zoo
from stillhouse.core.errors import ModelError
from stillhouse.core.types import Batch, Tap
from stillhouse.models.forward import run


def batch() -> Batch:
    ids = torch.full((2, 5), 7)
    ids[:, -1] = 2  # a BART's end
    return Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, np.arange(2))


@pytest.mark.parametrize(
    ("family", "says"),
    [
        ("xlnet", "not laid out by text and token"),
        ("longformer", "not laid out by text and token"),  # filled up to whole windows
        ("squeezebert", "hidden of layer 0 can't be read in a SqueezeBert"),
    ],
)
def test_states_that_are_not_by_text_and_token_are_refused(family: str, says: str) -> None:
    taps = [Tap("hidden", layer) for layer in range(3)]
    with pytest.raises(ModelError, match=says) as caught:
        run(zoo.model(family), batch(), precision="float32", reads=taps)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["t5", "bart", "gpt2", "esm"])
def test_states_are_read_where_there_are_no_scores_to_make(family: str) -> None:
    tap = Tap("hidden", 1)
    found = run(zoo.model(family), batch(), precision="float32", reads=[tap], scored=False)
    assert found.states is not None
    assert found.states[tap].shape[:2] == (2, 5)
