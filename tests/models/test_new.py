"""New models: their shape, their special ids, what they learn, what is refused.

Axes: B examples, T tokens.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    pipeline,
)

from stillhouse.core.errors import ModelError
from stillhouse.data.tokens import train_tokenizer
from stillhouse.models.new import FAMILIES, new_model
from stillhouse.models.student import parameters

PAIRS = [(task, family) for task, families in FAMILIES.items() for family in families]
every = pytest.mark.parametrize("task, family", PAIRS)


@cache
def tokenizer(task: str) -> PreTrainedTokenizerFast:
    texts = ["one two three four five six seven eight nine ten"] * 3
    return train_tokenizer(texts, kind="bpe", size=270, task=task)


def made(task: str, family: str | None, **shape: Any) -> Any:
    return new_model(task, tokenizer(task), family=family, **{"width": 16, "layers": 2, **shape})


def test_parameters_by_hand() -> None:
    """Marian of width 16, feed-forward 32, one layer a side: tied embeddings once, attentions of
    4 (16 x 16 + 16), their norms, and no trained positions."""
    found = made("seq2seq", "marian", layers=1, ffn=32, positions=8)
    attention, norm = 4 * (16 * 16 + 16), 2 * 16
    inner = 16 * 32 + 32 + 32 * 16 + 16
    encoder, decoder = attention + inner + 2 * norm, 2 * attention + inner + 3 * norm
    trained = sum(p.numel() for p in found.parameters() if p.requires_grad)
    assert trained == 270 * 16 + encoder + decoder
    assert parameters(found) == trained + 2 * 8 * 16  # sinusoids
    llama = made("causal_lm", "llama", layers=1, ffn=32)
    assert parameters(llama) == 270 * 16 + 4 * 16 * 16 + 3 * 16 * 32 + 3 * 16


@every
def test_shapes_are_as_asked(task: str, family: str) -> None:
    found = made(task, family, width=32, layers=3, ffn=24, heads=4, positions=40, dropout=0.2)
    assert not found.training
    assert found.config.model_type == family
    assert found.config.vocab_size == found.get_input_embeddings().weight.shape[0] == 270
    assert found.get_output_embeddings().weight is found.get_input_embeddings().weight
    shapes = [tuple(p.shape) for p in found.parameters() if p.ndim == 2]
    assert (24, 32) in shapes or (32, 24) in shapes
    lists = [len(m) for m in found.modules() if isinstance(m, nn.ModuleList) and len(m) == 3]
    assert len([n for n in lists if n == 3]) >= (2 if task == "seq2seq" else 1)
    shares = {m.p for m in found.modules() if isinstance(m, nn.Dropout)}
    assert shares <= {0.2} if family != "llama" else found.config.attention_dropout == 0.2
    if task == "seq2seq":
        apart = made(task, family, layers=3, decoder_layers=1)
        sides = {len(m) for m in apart.modules() if isinstance(m, nn.ModuleList)} & {1, 3}
        assert sides == {1, 3}


def batch(task: str) -> dict[str, Tensor]:
    coded = dict(
        tokenizer(task)(["two one", "nine eight seven six"], padding=True, return_tensors="pt")
    )
    if task == "seq2seq":
        coded["labels"] = torch.where(coded["attention_mask"] == 1, coded["input_ids"], -100)
    return coded


@every
def test_a_saved_model_generates_by_itself(task: str, family: str, tmp_path: Path) -> None:
    """With transformers' own generate and defaults: it begins and ends where ours does."""
    mine = tokenizer(task)
    found = made(task, family, positions=30)
    found.save_pretrained(tmp_path)
    mine.save_pretrained(tmp_path)
    auto = AutoModelForSeq2SeqLM if task == "seq2seq" else AutoModelForCausalLM
    again, tokens = auto.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    settings = again.generation_config
    assert (settings.pad_token_id, settings.eos_token_id) == (mine.pad_token_id, mine.eos_token_id)
    assert settings.max_length == 30
    inputs = tokens("two one", return_tensors="pt")
    ids_BT = again.generate(**inputs)
    if task == "seq2seq":
        assert ids_BT[0, 0] == mine.pad_token_id == again.config.decoder_start_token_id
        shifted = again.prepare_decoder_input_ids_from_labels(torch.tensor([[5, 6, 1]]))
        assert shifted.tolist() == [[mine.pad_token_id, 5, 6]]
        for each in (settings, again.config):
            assert getattr(each, "forced_eos_token_id", None) is None
        assert getattr(settings, "bos_token_id", None) is None
    else:
        assert settings.bos_token_id == mine.bos_token_id
        assert ids_BT[0, : inputs["input_ids"].shape[1]].tolist() == inputs["input_ids"][0].tolist()
    assert ids_BT.shape[1] <= 30
    with torch.no_grad():
        both = [model(**batch(task)).logits for model in (found, again)]
    torch.testing.assert_close(*both)


def test_transformers_pipeline_takes_a_saved_language_model(tmp_path: Path) -> None:
    made("causal_lm", "gpt2", positions=16).save_pretrained(tmp_path)
    tokenizer("causal_lm").save_pretrained(tmp_path)
    found = pipeline("text-generation", model=str(tmp_path))("two one")
    assert found[0]["generated_text"].startswith("two one")


@every
def test_weights_follow_the_seed_and_torchs_random_numbers_stay(task: str, family: str) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    one, same, other = (made(task, family, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    states = [model.state_dict() for model in (one, same, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    drawn = [n for n, p in one.named_parameters() if p.ndim == 2 and p.requires_grad]
    assert len(drawn) >= 10
    assert not any(torch.equal(states[0][name], states[2][name]) for name in drawn)


@every
def test_it_learns(task: str, family: str) -> None:
    """A few pairs by heart, at a rate that suits all families."""
    found = made(task, family, width=32, layers=1, dropout=0.0).train()
    inputs = batch(task)
    if task == "causal_lm":
        inputs["labels"] = torch.where(inputs["attention_mask"] == 1, inputs["input_ids"], -100)
    optimizer = torch.optim.Adam(found.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        loss = found(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 4.0
    assert np.mean(losses[-3:]) < 0.4 * losses[0]


@pytest.mark.parametrize(
    ("task", "family", "shape", "says"),
    [
        ("seq2seq", "gpt2", {}, r"unknown family of seq2seq models 'gpt2' \(known: bart"),
        ("seq2seq", "marain", {}, "did you mean 'marian'"),
        ("seq2seq", "marian", {"heads": 3}, "width of 16 can't have 3 heads: 1, 2, 4, 8, 16 would"),
        ("seq2seq", "marian", {"width": 15}, "even width, got 15"),
        ("causal_lm", "llama", {"heads": 16}, "can't have 16 heads: 1, 2, 4, 8 would fit"),
        ("causal_lm", "llama", {"width": 7}, "even width, got 7"),
        ("causal_lm", "gpt2", {"decoder_layers": 1}, "leave decoder_layers out"),
        ("causal_lm", "gpt2", {"layers": 0}, "layers must be at least 1, got 0"),
        ("causal_lm", "gpt2", {"dropout": 1.0}, "less than 1, got 1.0"),
    ],
)
def test_impossible_shapes_are_refused(task: str, family: str, shape: dict, says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        made(task, family, **shape)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_an_end_is_refused() -> None:
    mine = train_tokenizer(["one two"] * 3, kind="bpe", size=260, task="causal_lm")
    mine.eos_token = None
    with pytest.raises(ModelError, match="no token to end a text with: set its eos_token"):
        new_model("causal_lm", mine, width=16, layers=1)


def test_heads_are_of_64_and_at_least_two() -> None:
    for width, heads in ((16, 2), (64, 2), (128, 2), (256, 4), (512, 8), (250, 2), (320, 5)):
        assert made("causal_lm", "gpt2", width=width, layers=1).config.n_head == heads, width
