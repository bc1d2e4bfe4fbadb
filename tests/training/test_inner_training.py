"""Training on what is read inside: what no read layer needs stays as it is.

Axes: B examples, T tokens, H hidden.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import tiny
from stillhouse.core.config import TrainingConfig
from stillhouse.core.types import Batch, StudentOutput, Tap
from stillhouse.models.forward import has_fast_path
from stillhouse.models.student import blocks
from stillhouse.training.optim import Optimizer
from stillhouse.training.steps import TextForward

TEXTS = [text for text, _ in tiny.sentences(8)]
LAYERS, STEPS, LR = 4, 3, 1e-2
FAST = ["bert", "roberta", "distilbert"]


def batch(kind: str, *, masked: bool = False) -> Batch:
    inputs = dict(tiny.tokenizer(kind)(TEXTS, padding=True, return_tensors="pt"))
    count, width = inputs["input_ids"].shape
    scored_N = torch.arange(count) * width + 1 if masked else None
    return Batch(inputs, np.arange(count), scored_N=scored_N)


def config(embeddings: Literal["rows", "dense", "frozen"] = "rows") -> TrainingConfig:
    """A decay that would show on every matrix that is stepped at all."""
    return TrainingConfig(precision="float32", embeddings=embeddings, weight_decay=0.5)


def loss(output: StudentOutput) -> Tensor:
    assert output.states is not None
    draw = torch.Generator().manual_seed(0)
    total = torch.zeros(())
    for _, state in sorted(output.states.found.items()):
        x = state[output.states.mask_BT] if state.ndim == 3 else state[:, :, 0]
        total = total + (x * torch.randn(x.shape, generator=draw)).sum()
    return total


def train(
    model: PreTrainedModel,
    reads: set[Tap],
    *,
    fast: bool = True,
    masked: bool = False,
    settings: TrainingConfig | None = None,
) -> list[str]:
    """Some steps towards random states; the names of what the optimizer had."""
    settings = settings or config()
    forward = TextForward(settings, fast=fast, reads=reads, scored=False)
    rows = batch(model.config.model_type, masked=masked)
    with forward.training(model) as leaves:
        optimizer = Optimizer(model, settings, leaves)
        for step in range(STEPS):
            output = forward(model, rows, np.random.default_rng(step))
            assert output.scores_NK.shape == (len(TEXTS), 0)
            loss(output).backward()
            optimizer.clip()
            optimizer.step(LR)
        return [leaf.name for leaf in leaves]


def above(model: PreTrainedModel, layer: int) -> tuple[set[str], set[str]]:
    """The names of what is above a block (its head's own too), and the matrices up to it."""
    base = model.base_model
    needed = [base.embeddings, *blocks(model)[1][:layer]]
    if hasattr(base, "embeddings_project"):  # ELECTRA's
        needed.append(base.embeddings_project)
    ids = {id(p) for part in needed for p in part.parameters()}
    outside = {name for name, p in model.named_parameters() if id(p) not in ids}
    inside = {name for name, p in model.named_parameters() if id(p) in ids and p.ndim == 2}
    return outside, {name for name in inside if "token_type" not in name}


@pytest.mark.parametrize("kind", [*FAST, "electra", "modernbert"])
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "own"])
@pytest.mark.parametrize("masked", [False, True], ids=["classifier", "masked_lm"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_what_is_above_the_highest_read_layer_stays_bit_for_bit(
    kind: str, fast: bool, masked: bool, layer: int
) -> None:
    model = tiny.model(kind, layers=LAYERS, masked=masked)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    names = train(model, {Tap("hidden", layer)}, fast=fast, masked=masked)
    assert ("matrices" in names) is (fast and has_fast_path(model) and layer > 0)
    outside, inside = above(model, layer)
    assert len(outside) > 10
    for name, parameter in model.named_parameters():
        if name in outside:
            assert torch.equal(parameter, before[name]), name
        elif name in inside:
            assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("kind", FAST)
@pytest.mark.parametrize("embeddings", ["rows", "dense", "frozen"])
def test_both_ways_train_alike(kind: str, embeddings: Literal["rows", "dense", "frozen"]) -> None:
    """The flat buffers and the model's own parameters, to rounding."""
    found: list[dict[str, Tensor]] = []
    for fast in (True, False):
        model = tiny.model(kind, layers=LAYERS, dropout=0.0)
        train(
            model,
            {Tap("hidden", 0), Tap("hidden", 2), Tap("probabilities", 1)},
            fast=fast,
            settings=config(embeddings),
        )
        found.append({name: p.detach() for name, p in model.named_parameters()})
    for name, parameter in found[1].items():
        if "key.bias" in name or "k_lin.bias" in name:  # no gradient but for rounding
            continue
        torch.testing.assert_close(found[0][name], parameter, atol=2e-3, rtol=0, msg=name)


@pytest.mark.parametrize("kind", FAST)
def test_the_shared_buffers_are_given_back(kind: str) -> None:
    model = tiny.model(kind, layers=LAYERS)
    train(model, {Tap("hidden", 2)})
    storages = [p.untyped_storage().data_ptr() for p in model.parameters()]
    assert len(set(storages)) == len(storages)


def test_reading_a_module_trains_by_the_models_own_forward() -> None:
    model = tiny.model(layers=LAYERS)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    place = "bert.encoder.layer.1.output.dense"
    names = train(model, {Tap("module", name=place)})
    assert "matrices" not in names
    outside, _ = above(model, 2)
    for name, parameter in model.named_parameters():
        if name in outside:
            assert torch.equal(parameter, before[name]), name
    assert not torch.equal(model.get_submodule(place).weight, before[f"{place}.weight"])
