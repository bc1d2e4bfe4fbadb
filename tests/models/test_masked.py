"""Masked language models: their head on chosen tokens, one around another's encoder, loading.

Axes: B examples, T tokens, N scored tokens, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import FNetConfig, FNetForMaskedLM, PreTrainedModel

import tiny
from stillhouse.core.errors import ModelError
from stillhouse.core.types import Batch
from stillhouse.models.forward import run
from stillhouse.models.masked import (
    HEADS,
    around,
    check_family,
    load_masked_lm,
    vocabulary_scores,
)

TEXTS = [text for text, _ in tiny.sentences(5)]
every_kind = pytest.mark.parametrize("kind", tiny.KINDS)


def texts(kind: str) -> dict[str, Tensor]:
    return dict(tiny.tokenizer(kind)(TEXTS, padding=True, return_tensors="pt"))


def refused(says: str, attempt: Callable[[], object]) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        attempt()
    assert "\n" not in str(caught.value)


def is_tied(model: PreTrainedModel) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_every_family_is_tried() -> None:
    assert set(HEADS) == set(tiny.KINDS)
    for kind in tiny.KINDS:
        check_family(tiny.model(kind).config)


@every_kind
@torch.no_grad()
def test_chosen_tokens_get_what_the_full_forward_gives_them(kind: str) -> None:
    model, batch = tiny.model(kind, masked=True), texts(kind)
    full_BTV = model(**batch).logits
    hidden_BTH = model.base_model(**batch).last_hidden_state
    scored_N = torch.tensor([1, 2, 7, batch["input_ids"].numel() - 1])
    scores_NV = vocabulary_scores(model, hidden_BTH.flatten(0, 1)[scored_N])
    assert scores_NV.shape == (4, model.config.vocab_size)
    expected_NV = full_BTV.flatten(0, 1)[scored_N]
    assert expected_NV.std() > 0.1
    torch.testing.assert_close(scores_NV, expected_NV, atol=1e-5, rtol=1e-5)


# Around another model's encoder.


@every_kind
def test_the_encoder_is_shared_and_the_decoder_its_words(kind: str) -> None:
    model = tiny.model(kind)
    held = dict(model.base_model.named_parameters())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = around(model, 1)
    assert type(made).__name__.endswith("ForMaskedLM")
    assert made.base_model is model.base_model
    for name, parameter in model.base_model.named_parameters():
        assert parameter is held[name], name
    assert is_tied(made)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not made.training


@every_kind
def test_training_one_trains_the_other(kind: str) -> None:
    model, batch = tiny.model(kind, dropout=0.0), texts(kind)
    made = around(model, 1)
    first_BK = model(**batch).logits.detach()
    words = model.get_input_embeddings().weight
    before_VH = words.detach().clone()
    optimizer = torch.optim.SGD(made.parameters(), lr=0.05)
    made(**batch).logits.logsumexp(-1).sum().backward()
    optimizer.step()
    assert not torch.allclose(model(**batch).logits, first_BK, atol=1e-3)
    assert not torch.equal(words, before_VH)
    assert torch.equal(made.get_output_embeddings().weight, words)
    first_BTV = made(**batch).logits.detach()
    model.zero_grad()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model(**batch).logits[:, 0].sum().backward()
    optimizer.step()
    assert not torch.allclose(made(**batch).logits, first_BTV, atol=1e-3)


@every_kind
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "own"])
@torch.no_grad()
def test_it_answers_as_such_a_model_would(kind: str, fast: bool) -> None:
    """The same weights in a model of their own."""
    made, batch = around(tiny.model(kind), 1), texts(kind)
    alone = type(made)(made.config).eval()
    alone.load_state_dict(made.state_dict(), strict=False)  # it has no pooler
    scored_N = torch.tensor([1, 2, 7])
    expected_NV = alone(**batch).logits.flatten(0, 1)[scored_N]
    rows = Batch(batch, np.arange(len(TEXTS)), scored_N=scored_N)
    found_NV = run(made, rows, precision="float32", fast=fast).scores_NK
    torch.testing.assert_close(found_NV, expected_NV, atol=1e-5, rtol=1e-5)


def head(model: PreTrainedModel) -> dict[str, Tensor]:
    """Its own parameters, without the words'."""
    inside = {id(p) for p in model.base_model.parameters()}
    return {name: p for name, p in model.named_parameters() if id(p) not in inside}


@every_kind
def test_its_head_is_fresh_and_follows_the_seed(kind: str) -> None:
    model = tiny.model(kind)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    one, same, other = (head(around(model, seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected), "torch's random numbers are left alone"
    assert len(one) >= 3
    assert all(torch.equal(one[name], same[name]) for name in one)
    matrices = [name for name in one if one[name].ndim == 2]
    assert matrices
    assert not any(torch.equal(one[name], other[name]) for name in matrices)


@every_kind
def test_its_head_is_that_of_a_like_model_as_far_as_it_fits(kind: str) -> None:
    model, like = tiny.model(kind), tiny.model(kind, masked=True, seed=5, layers=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = around(model, 1, like=like)
    theirs = head(like)
    assert head(made).keys() == theirs.keys()
    for name, parameter in head(made).items():
        assert torch.equal(parameter, theirs[name]), name
        assert parameter.data_ptr() != theirs[name].data_ptr()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    wider = around(tiny.model(kind, hidden=48), 1, like=like)
    mine = head(wider)
    assert any(mine[name].shape != theirs[name].shape for name in theirs)
    for name, parameter in mine.items():
        assert (parameter.shape == theirs[name].shape) is (
            parameter.shape == theirs[name].shape and torch.equal(parameter, theirs[name])
        ), name


@every_kind
def test_an_encoder_of_untied_settings_is_tied(kind: str) -> None:
    """A classifier's settings may say nothing of words and decoder."""
    model = tiny.model(kind, tie_word_embeddings=False)
    assert is_tied(around(model, 1))
    assert model.config.tie_word_embeddings is False


# Loading and refusals.


@every_kind
def test_what_was_saved_is_loaded(kind: str, tmp_path: Path) -> None:
    saved = tiny.model(kind, masked=True)
    saved.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = load_masked_lm(str(tmp_path))
    assert not loaded.training
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.float()), name
    assert is_tied(loaded)


@every_kind
def test_a_model_without_the_head_is_refused_unless_a_fresh_one_will_do(
    kind: str, tmp_path: Path
) -> None:
    classifier = tiny.model(kind)
    classifier.save_pretrained(tmp_path)
    folder = str(tmp_path)
    says = "has no masked language model head .*its weights lack .*--task masked_lm first"
    refused(says, lambda: load_masked_lm(folder))
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(load_masked_lm(folder, fresh_head=True))
    one, same, other = (head(model) for model in made)
    assert all(torch.equal(one[name], same[name]) for name in one)
    matrices = [name for name in one if one[name].ndim == 2]
    if kind == "modernbert":  # its classifier has the part of the head before the decoder
        assert torch.equal(one["head.dense.weight"], classifier.head.dense.weight)
    else:
        assert not any(torch.equal(one[name], other[name]) for name in matrices)
    theirs = dict(classifier.base_model.named_parameters())
    for name, parameter in made[0].base_model.named_parameters():
        assert torch.equal(parameter, theirs[name]), name
    assert not made[0].training


def test_a_family_whose_head_we_do_not_know_is_refused(tmp_path: Path) -> None:
    config = FNetConfig(
        vocab_size=65, hidden_size=32, num_hidden_layers=1, intermediate_size=64, pad_token_id=0
    )
    model = FNetForMaskedLM(config)
    model.save_pretrained(tmp_path)
    says = "unknown masked language model family 'fnet'.*known: bert"
    refused(says, lambda: load_masked_lm(str(tmp_path)))
    refused(says, lambda: check_family(config))
    refused(says, lambda: around(model, 0))
    close = SimpleNamespace(model_type="modernbrt")
    refused("did you mean 'modernbert'", lambda: check_family(close))


def test_folders_that_hold_no_such_model_are_refused(tmp_path: Path) -> None:
    refused("no model folder", lambda: load_masked_lm(str(tmp_path / "nothing")))
    folder = tmp_path / "m"
    tiny.model(layers=2, masked=True).save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    for change, says in (
        ({"num_hidden_layers": 3}, "not those its config.json describes"),
        ({"num_hidden_layers": 1}, "not those its config.json describes"),
        ({"model_type": "t5gemma"}, "can't load"),
        ({"model_type": "nosuch"}, "can't load"),
    ):
        (folder / "config.json").write_text(json.dumps(settings | change))
        refused(says, lambda: load_masked_lm(str(folder)))
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "model.safetensors").write_bytes(b"broken")
    refused("cut short or damaged", lambda: load_masked_lm(str(folder)))
    (folder / "model.safetensors").unlink()
    refused("no .safetensors weights", lambda: load_masked_lm(str(folder)))
