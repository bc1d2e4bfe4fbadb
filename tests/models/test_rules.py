"""Under the rules of a model's generation settings, texts are those of its `generate`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_decode import END, PAD, generator, sources, target  # pyright: ignore

from stillhouse.models.decode import decode, sequence_logp
from stillhouse.models.rules import Search, keep_search, not_followed, search_of
from stillhouse.models.search import Decoding

RULES: list[dict[str, Any]] = [
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2, "min_length": 6},
    {"min_new_tokens": 9},
    {"repetition_penalty": 1.7},
    {"encoder_repetition_penalty": 1.5},
    {"encoder_no_repeat_ngram_size": 1},
    {"bad_words_ids": [[5], [6, 7], [8]]},
    {"suppress_tokens": [4, 5, 8, 9, 12], "begin_suppress_tokens": [3, END]},
    {"sequence_bias": [[[7], 3.0], [[5, 6], -4.0]]},
    {"exponential_decay_length_penalty": [3, 1.3]},
]


def theirs(model: Any, source: np.ndarray, **settings: Any) -> list[int]:
    """What `generate` writes, by the model's own settings."""
    ids = torch.from_numpy(source)[None]
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, **settings)
    text = out[0, 1 if model.config.is_encoder_decoder else len(source) :].tolist()
    return text[: text.index(END)] if END in text else text


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("kind", ["marian", "gpt2"])
@pytest.mark.parametrize("rules", RULES, ids=lambda rules: "-".join(rules))
def test_texts_are_those_of_generate(rules: dict[str, Any], kind: str, beams: int) -> None:
    model, given = generator(kind), sources(12, seed=3)
    if kind == "marian":
        short = "min_new_tokens" in rules  # or long, for the rule to matter
        model.final_logits_bias[0, END] = 7.0 if short else 2.0
    config = Decoding(beams=beams, max_tokens=10, early_stopping=False)
    plain = decode(model, given, config, pad_id=PAD)
    model.generation_config.update(**rules)
    words = [*rules.get("bad_words_ids", []), [PAD]]  # which `decode` never writes
    model.generation_config.bad_words_ids = words
    found = decode(model, given, config, pad_id=PAD)
    for source, (mine,) in zip(given, found, strict=True):
        assert mine.ids.tolist() == theirs(model, source, num_beams=beams)
    pairs = [(a, b) for (a,), (b,) in zip(plain, found, strict=True)]
    assert any(a.ids.tolist() != b.ids.tolist() for a, b in pairs), "the rule changes something"
    logp = sequence_logp(model, given, [target(text) for (text,) in found], pad_id=PAD)
    assert [text.logp for (text,) in found] == pytest.approx(logp)


def test_single_words_that_are_never_written_cost_no_rule() -> None:
    from stillhouse.models.reader import vocabulary

    model = generator("marian")
    model.generation_config.update(bad_words_ids=[[PAD], [5]], suppress_tokens=[7])
    words = vocabulary(model, pad_id=PAD)
    assert (words.rules, words.never) == ((), [PAD, 5, 7])


def test_what_is_not_followed_is_named() -> None:
    model = generator("marian")
    assert not_followed(model) == []
    model.generation_config.update(do_sample=True, forced_eos_token_id=END, num_beams=3)
    assert not_followed(model) == ["do_sample", "forced_eos_token_id"]


def test_a_runs_settings_go_before_the_models_and_these_before_ours() -> None:
    model = generator("marian")
    assert search_of(model, beams=None, length_penalty=None) == Search(5, 1.0, "never")
    model.generation_config.update(num_beams=3, length_penalty=0.6, early_stopping=True)
    assert search_of(model, beams=None, length_penalty=None) == Search(3, 0.6, True)
    assert search_of(model, beams=2, length_penalty=0.0) == Search(2, 0.0, True)


@pytest.mark.parametrize("beams", [1, 3])
def test_generate_writes_what_was_judged(beams: int, tmp_path: Any) -> None:
    model, given = generator("marian"), sources(12, seed=3)
    rules = {"no_repeat_ngram_size": 2, "do_sample": True, "top_k": 3, "temperature": 2.0}
    model.generation_config.update(**rules, bad_words_ids=[[PAD]])
    model.final_logits_bias[0, END] = 2.0
    search = search_of(model, beams=beams, length_penalty=0.3)
    config = Decoding(beams=search.beams, length_penalty=search.length_penalty, max_tokens=10)
    found = decode(model, given, config, pad_id=PAD)
    keep_search(model, search, max_tokens=10)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, dtype=torch.float64)
    for source, (mine,) in zip(given, found, strict=True):
        ids = torch.from_numpy(source)[None]
        text = again.generate(ids, attention_mask=torch.ones_like(ids))[0, 1:].tolist()
        assert mine.ids.tolist() == (text[: text.index(END)] if END in text else text)
