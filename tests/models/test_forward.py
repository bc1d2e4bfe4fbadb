"""The fast path computes what the model's own forward computes: values, gradients, dropout.

Axes: B examples, K choices.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import tiny
from stillhouse.models.forward import has_fast_path, scores, training_mode

TEXTS = [text for text, _ in tiny.sentences(12)]


def inputs(kind: str, *, pairs: bool = False, padded: bool = True) -> Mapping[str, Tensor]:
    texts = TEXTS if padded else ["the film was good", "the room was cold"]
    others = texts[::-1] if pairs else None
    return dict(tiny.tokenizer(kind)(texts, others, padding=True, return_tensors="pt"))


def own(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    return model(**batch).logits


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("pairs", [False, True], ids=["single", "pairs"])
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
def test_fast_scores_equal_the_models_own(kind: str, pairs: bool, padded: bool) -> None:
    model, batch = tiny.model(kind, layers=3), inputs(kind, pairs=pairs, padded=padded)
    assert has_fast_path(model)
    expected_BK = own(model, batch)
    assert expected_BK.std(0).min() > 0.01, "rows that all score alike would hide a mistake"
    found_BK = scores(model, batch, precision="float32")
    assert found_BK.dtype == torch.float32
    torch.testing.assert_close(found_BK, expected_BK, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_fast_gradients_equal_the_models_own(kind: str) -> None:
    model, batch = tiny.model(kind, layers=3, dropout=0.0), inputs(kind, pairs=True)
    weights_BK = torch.randn(len(TEXTS), 2, generator=torch.Generator().manual_seed(0))
    with training_mode(model, on=True):
        (own(model, batch) * weights_BK).sum().backward()
        expected = {name: p.grad.clone() for name, p in model.named_parameters()}
        model.zero_grad()
        found_BK = scores(model, batch, precision="float32", rng=np.random.default_rng(0))
        (found_BK * weights_BK).sum().backward()
    assert len(expected) > 40
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_bf16_is_close(kind: str) -> None:
    model, batch = tiny.model(kind), inputs(kind)
    found_BK = scores(model, batch, precision="bf16")
    assert found_BK.dtype == torch.float32
    difference = (found_BK.softmax(-1) - own(model, batch).softmax(-1)).abs().max()
    assert 0 < difference < 0.05


def test_dropout_is_on_with_a_generator_and_follows_it() -> None:
    model, batch = tiny.model(dropout=0.3), inputs("bert")
    once, again, other = (
        scores(model, batch, precision="float32", rng=np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(once, again)
    assert not torch.allclose(once, other)
    plain = scores(model, batch, precision="float32")
    assert torch.equal(plain, scores(model, batch, precision="float32"))
    assert not torch.allclose(once, plain)


def test_fast_dropout_has_the_moments_of_the_models_own() -> None:
    """Every dropout is there: the scores' spread over many draws is that of torch's dropout."""
    model = tiny.model(dropout=0.2, layers=2)
    one = dict(tiny.tokenizer()("the film was good but the ending slow", return_tensors="pt"))
    batch = {name: tensor.expand(4000, -1) for name, tensor in one.items()}
    with torch.no_grad(), training_mode(model, on=True):
        fast_BK = scores(model, batch, precision="float32", rng=np.random.default_rng(0))
        torch.manual_seed(0)
        own_BK = own(model, batch)
    torch.testing.assert_close(fast_BK.mean(0), own_BK.mean(0), atol=0.08, rtol=0)
    torch.testing.assert_close(fast_BK.std(0), own_BK.std(0), atol=0, rtol=0.07)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_longer_padding_changes_nothing(kind: str) -> None:
    model, batch = tiny.model(kind), inputs(kind)
    pad = {"input_ids": model.config.pad_token_id}
    longer = {
        name: torch.nn.functional.pad(tensor, (0, 9), value=pad.get(name, 0))
        for name, tensor in batch.items()
    }
    for fast in (True, False):
        torch.testing.assert_close(
            scores(model, longer, precision="float32", fast=fast),
            scores(model, batch, precision="float32", fast=fast),
            atol=1e-5,
            rtol=1e-5,
        )


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("distilbert", {}), ("bert", {"hidden_act": "relu"}), ("bert", {"is_decoder": True})],
)
def test_other_models_answer_with_their_own_forward(kind: str, settings: dict[str, object]) -> None:
    model, batch = tiny.model(kind, **settings), inputs(kind)
    assert not has_fast_path(model)
    torch.testing.assert_close(scores(model, batch, precision="float32"), own(model, batch))


def test_training_mode_is_put_back() -> None:
    model = tiny.model().eval()
    with pytest.raises(ValueError, match="inside"), training_mode(model, on=True):  # noqa: PT012
        assert model.training
        raise ValueError("inside")
    assert not model.training
