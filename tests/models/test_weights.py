"""Flat weights train what the model's own parameters would: values, gradients, sharing, release.

Axes: B examples, K choices.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import tiny
from stillhouse.core.config import TrainingConfig
from stillhouse.core.errors import RunError
from stillhouse.core.types import Batch
from stillhouse.models.forward import DTYPES, fast_layers, fast_weights, scores
from stillhouse.models.weights import flattened, own_leaves
from stillhouse.training.optim import Optimizer
from stillhouse.training.steps import TextForward

TEXTS = [text for text, _ in tiny.sentences(12)]


def batch(kind: str = "bert") -> Batch:
    inputs = dict(tiny.tokenizer(kind)(TEXTS, padding=True, return_tensors="pt"))
    return Batch(inputs, np.arange(len(TEXTS)))


def loss(scores_BK: Tensor) -> Tensor:
    weights_BK = torch.randn(len(TEXTS), 2, generator=torch.Generator().manual_seed(0))
    return (scores_BK * weights_BK).sum()


def drawn() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ("bert", "float32"),
        ("roberta", "float32"),
        ("distilbert", "float32"),
        ("bert", "bf16"),
        ("roberta", "bf16"),  # DistilBERT's head has a kink, which rounding crosses
    ],
)
def test_gradients_are_those_of_the_parameters(kind: str, precision: Any) -> None:
    """Each element of the buffers gets the gradient of the parameter that lives there."""
    model, rows = tiny.model(kind, layers=3, dropout=0.1), batch(kind)
    weights = fast_weights(model, precision)
    expected_BK = scores(model, rows.inputs, precision=precision, rng=drawn(), weights=weights)
    loss(expected_BK).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    with flattened(fast_layers(model)) as flat:
        pairs = flat.pairs(DTYPES[precision])
        found_BK = scores(model, rows.inputs, precision=precision, rng=drawn(), weights=pairs)
        loss(found_BK).backward()
        tolerance = 1e-5 if precision == "float32" else 0.02
        torch.testing.assert_close(found_BK, expected_BK, atol=tolerance, rtol=tolerance)
        at = {leaf.tensor.data_ptr(): leaf.tensor for leaf in flat.leaves()}
        inside = flat.parameters()
        found: dict[str, Tensor] = {}
        for name, p in model.named_parameters():
            if id(p) in inside:
                start, buffer = max((a, b) for a, b in at.items() if a <= p.data_ptr())
                offset = (p.data_ptr() - start) // 4
                found[name] = buffer.grad[offset : offset + p.numel()].view(p.shape)
            else:
                found[name] = p.grad
        assert len(inside) > 20
    scale = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name] / scale, gradient / scale, atol=tolerance, rtol=tolerance, msg=name
        )


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_two_backward_passes_of_one_forward_do_not_mix(precision: Any) -> None:
    """A term's gradient stays what it was when another term's is taken through the same graph."""
    model = tiny.model(dropout=0.0)
    with flattened(fast_layers(model)) as flat:
        leaves = [leaf.tensor for leaf in flat.leaves()]
        pairs = flat.pairs(DTYPES[precision])
        scores_BK = scores(model, batch().inputs, precision=precision, weights=pairs)
        first = torch.autograd.grad(scores_BK[:, 0].sum(), leaves, retain_graph=True)
        held = [g.clone() for g in first]
        second = torch.autograd.grad(scores_BK[:, 1].sum(), leaves)
    for mine, kept, other in zip(first, held, second, strict=True):
        assert torch.equal(mine, kept)
        assert not torch.equal(mine, other)


def test_float32_copies_neither_weights_nor_gradients() -> None:
    model = tiny.model(dropout=0.0)
    with flattened(fast_layers(model)) as flat:
        pairs = flat.pairs(torch.float32)
        by_weight, by_bias = pairs[0].slots or pytest.fail("no slots")
        written = [slot().untyped_storage().data_ptr() for slot in (by_weight, by_bias)]
        loss(scores(model, batch().inputs, precision="float32", weights=pairs)).backward()
        buffers = [leaf.tensor for leaf in flat.leaves()]
        shared = [pairs[0].weight, pairs[0].bias]
    assert [t.untyped_storage().data_ptr() for t in shared] == [b.data_ptr() for b in buffers]
    assert [b.grad.data_ptr() for b in buffers] == written


def step(model: PreTrainedModel, forward: TextForward, config: TrainingConfig) -> list[str]:
    """One optimizer step; the names of what was trained."""
    with forward.training(model) as leaves:
        optimizer = Optimizer(model, config, leaves)
        loss(forward(model, batch(), drawn()).scores_NK).backward()
        optimizer.clip()
        optimizer.step(1e-3)
        return [leaf.name for leaf in leaves]


def test_a_flat_step_is_the_step_of_the_parameters() -> None:
    config = TrainingConfig(precision="float32", embeddings="dense", dropout=0.0)
    flat, own = tiny.model(dropout=0.0), tiny.model(dropout=0.0)
    own.load_state_dict(flat.state_dict())
    before = {name: tensor.clone() for name, tensor in flat.state_dict().items()}
    assert "matrices" in step(flat, TextForward(config), config)
    assert "matrices" not in step(own, TextForward(config, fast=False), config)
    for name, tensor in own.state_dict().items():
        if name.endswith("key.bias"):  # its gradient is 0 but for rounding
            continue
        assert not torch.equal(tensor, before[name]), name
        torch.testing.assert_close(flat.state_dict()[name], tensor, atol=2e-5, rtol=0, msg=name)


def test_a_frozen_layer_stays() -> None:
    config = TrainingConfig(precision="float32")
    model = tiny.model()
    frozen = model.bert.encoder.layer[0].output.dense.weight
    before = frozen.detach().clone()
    frozen.requires_grad_(False)
    names = step(model, TextForward(config), config)
    assert "matrices" not in names
    assert len(names) == len(own_leaves(model))
    assert torch.equal(frozen, before)


def test_another_model_in_the_block_answers_with_its_own_weights() -> None:
    config = TrainingConfig(precision="float32")
    one, other, forward = tiny.model(seed=1), tiny.model(seed=2), TextForward(config)
    expected = forward(other, batch(), drawn()).scores_NK
    with forward.training(one):
        assert torch.equal(forward(other, batch(), drawn()).scores_NK, expected)


def test_a_block_used_twice_is_trained_as_one() -> None:
    model = tiny.model(layers=2)
    model.bert.encoder.layer[1] = model.bert.encoder.layer[0]
    config = TrainingConfig(precision="float32", embeddings="dense")
    assert "matrices" not in step(model, TextForward(config), config)


def test_replaced_memory_is_refused() -> None:
    """What is then trained would not be what is saved."""
    model, forward = tiny.model(), TextForward(TrainingConfig())
    with forward.training(model):
        model.classifier.weight.data = model.classifier.weight.data.clone()
        with pytest.raises(RunError, match="in place"):
            forward(model, batch(), drawn())


def test_parameters_share_the_buffers_inside_and_own_their_memory_after() -> None:
    model = tiny.model()
    weight = model.classifier.weight
    with flattened(fast_layers(model)) as flat:
        matrices = flat.leaves()[0].tensor
        with torch.no_grad():
            weight.fill_(7.0)
        assert int((matrices == 7.0).sum()) == weight.numel()
        assert weight.untyped_storage().data_ptr() == matrices.untyped_storage().data_ptr()
    assert (weight == 7.0).all()
    storages = [p.untyped_storage().data_ptr() for p in model.parameters()]
    assert len(set(storages)) == len(storages)
