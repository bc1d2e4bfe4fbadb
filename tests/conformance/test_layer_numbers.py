"""Row: hidden_states off by one. "Layer k" is block k, counted from 1: a model whose layers
are known.

Axes: B examples, T tokens, H hidden.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import tiny
from stillhouse.core.config import StudentConfig
from stillhouse.core.types import Batch, Tap
from stillhouse.models.forward import run
from stillhouse.models.student import blocks, build, take_layers


def marked(kind: str, layers: int) -> PreTrainedModel:
    """A model whose block k does nothing but leave k in its last norm: the state after it is k."""
    model = tiny.model(kind, layers=layers, dropout=0.0)
    with torch.no_grad():
        for k, block in enumerate(blocks(model)[1], 1):
            norms = [m for m in block.modules() if isinstance(m, nn.LayerNorm)]
            norms[-1].weight.zero_()
            norms[-1].bias.fill_(float(k))
    return model


def states(model: PreTrainedModel) -> list[float]:
    """The constant that each block leaves, from the states after it."""
    ids = torch.tensor([[2, 20, 21, 3]])
    with torch.no_grad():
        found = model(input_ids=ids, output_hidden_states=True).hidden_states
    assert all(len(state_BTH.unique()) == 1 for state_BTH in found[1:])
    return [float(state_BTH[0, 0, 0]) for state_BTH in found[1:]]


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert"])
def test_the_asked_layers_are_taken(kind: str) -> None:
    source = marked(kind, 6)
    assert states(source) == [1, 2, 3, 4, 5, 6]
    assert states(take_layers(source, [2, 4])) == [2, 4]
    assert states(take_layers(source, [1])) == [1]


@pytest.mark.parametrize(
    ("keep", "expected"), [("alternate", [2, 4, 6]), ("first", [1, 2, 3]), ("last", [4, 5, 6])]
)
def test_the_named_ways_take_what_they_say(keep: str, expected: list[int]) -> None:
    shape = StudentConfig.model_validate({"layers": 3, "keep": keep})
    assert states(build(marked("bert", 6), shape)) == expected
    assert states(build(marked("bert", 6), StudentConfig(layers=[1, 6]))) == [1, 6]
    distilled = StudentConfig(layers=[2, 5], family="distilbert")
    assert states(build(marked("bert", 6), distilled)) == [2, 5]


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert"])
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "own"])
@pytest.mark.parametrize("scored", [True, False])
def test_what_is_read_is_of_the_named_layer(kind: str, fast: bool, scored: bool) -> None:
    """Layer 0 is what the embeddings give; attention k is what block k makes of state k - 1."""
    model, ids = marked(kind, 6), torch.tensor([[2, 20, 21, 3]])
    batch = Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, np.arange(1))
    reads = {Tap(what, k) for what in ("hidden", "values") for k in (1, 3, 6)}
    with torch.no_grad():
        output = run(
            model,
            batch,
            precision="float32",
            fast=fast,
            reads={*reads, Tap("hidden", 0)},
            scored=scored,
        )
        assert output.states is not None
        assert len(output.states[Tap("hidden", 0)].unique()) > 4
        for k in (1, 3, 6):
            state_BTH = output.states[Tap("hidden", k)]
            assert state_BTH.unique().tolist() == [k]
            own = blocks(model)[1][k - 1].attention
            linear = own.v_lin if kind == "distilbert" else own.self.value
            before_BTH = torch.full_like(state_BTH, float(k - 1))
            values = output.states[Tap("values", k)].transpose(1, 2).flatten(2)
            if k > 1:
                torch.testing.assert_close(values, linear(before_BTH), atol=1e-4, rtol=1e-4)
