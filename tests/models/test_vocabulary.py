"""Words of a vocabulary and a masked language model's guesses, beside ones made one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    BertForMaskedLM,
    DistilBertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

import tiny
from stillhouse.core.errors import ModelError, RunError
from stillhouse.core.types import Example
from stillhouse.models.vocabulary import MaskedGuesses, Place, embedding_words, whole_words

KINDS = ["bert", "distilbert", "roberta", "bytes"]
CLASSES: dict[str, Any] = {
    "bert": BertForMaskedLM,
    "distilbert": DistilBertForMaskedLM,
    "roberta": RobertaForMaskedLM,
}
TEXTS = [
    Example("the film was very good"),
    Example("Good film, (great) ending of a story with no end !"),
    Example("filming the film"),
    Example("soup"),
]
PAIRS = [Example("the film was good", "a great story"), Example("cold soup", "warm soup , very")]


def byte_level() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, trained on the words of the tiny world."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    words = [word for word in tiny.WORDS if word.isalpha()]
    words += [word.title() for word in words]
    core.train_from_iterator([f"x {word} {word}" for word in words] * 5, trainer)
    core.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=False, add_prefix_space=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=64,
        cls_token="<s>",
        pad_token="<pad>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


def made(kind: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A masked language model of `kind` and its tokenizer; `bytes`: a RoBERTa on bytes."""
    tokenizer = byte_level() if kind == "bytes" else tiny.tokenizer(kind)
    config: Any = tiny.model("roberta" if kind == "bytes" else kind).config
    if kind == "bytes":
        config = RobertaConfig(**{**config.to_dict(), "vocab_size": len(tokenizer) + 3})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = CLASSES["roberta" if kind == "bytes" else kind](config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.3)
    return model.eval(), tokenizer


def words_of(example: Example) -> list[Place]:
    """Every run of letters."""
    found: list[Place] = []
    for side, text in enumerate((example.text, example.pair or "")):
        start = None
        for i, letter in enumerate(text + " "):
            if letter.isalpha() and start is None:
                start = i
            elif not letter.isalpha() and start is not None:
                found.append((side, start, i))
                start = None
    return found


def naive(
    model: Any, tokenizer: Any, example: Example, place: Place, count: int
) -> tuple[str, list[str]]:
    """The word and its guesses by one full forward, from the vocabulary's pieces as text."""
    side, start, stop = place
    word = (example.pair or "" if side else example.text)[start:stop]
    both = (example.text,) if example.pair is None else (example.text, example.pair)
    coded = tokenizer(*both, return_tensors="pt")
    inside = [
        i
        for i in range(coded["input_ids"].shape[1])
        if coded.token_to_sequence(i) == side
        and coded.token_to_chars(i).start < stop
        and coded.token_to_chars(i).end > start
    ]
    ids = coded["input_ids"][0]
    if len(inside) != 1 or int(ids[inside[0]]) == tokenizer.unk_token_id:
        return word, []
    own = int(ids[inside[0]])
    ids[inside[0]] = tokenizer.mask_token_id
    with torch.no_grad():
        scores = model(**coded).logits[0, inside[0]].tolist()
    found: list[str] = []
    for i in sorted(range(len(tokenizer)), key=lambda i: -scores[i]):
        piece = tokenizer.convert_ids_to_tokens(i)
        if piece.startswith("Ġ"):
            piece = piece[1:]
        elif piece.startswith("##") or not isinstance(
            tokenizer.backend_tokenizer.model, models.WordPiece
        ):
            continue
        known = {word.lower(), *(other.lower() for other in found)}
        if piece.isalpha() and i != own and piece.lower() not in known:
            found.append(piece)
    return word, found[:count]


def guess(
    model: Any, tokenizer: Any, rows: Sequence[Example], **settings: Any
) -> list[list[list[str]]]:
    defaults = {"candidates": 5, "max_length": 64, "precision": "float32"}
    guesses = MaskedGuesses(model, tokenizer, **(defaults | settings))
    return guesses(rows, [words_of(row) for row in rows])


@pytest.mark.parametrize("rows", [TEXTS, PAIRS], ids=["texts", "pairs"])
@pytest.mark.parametrize("kind", KINDS)
def test_guesses_are_those_of_one_full_forward_each(kind: str, rows: list[Example]) -> None:
    model, tokenizer = made(kind)
    found = guess(model, tokenizer, rows)
    single = 0
    for row, here in zip(rows, found, strict=True):
        for place, words in zip(words_of(row), here, strict=True):
            word, expected = naive(model, tokenizer, row, place, 5)
            assert words == expected, word
            single += bool(expected)
    assert single > 4


@pytest.mark.parametrize("kind", KINDS)
def test_guesses_depend_on_no_other_row(kind: str) -> None:
    model, tokenizer = made(kind)
    once = guess(model, tokenizer, TEXTS)
    assert guess(model, tokenizer, TEXTS[::-1]) == once[::-1]
    assert guess(model, tokenizer, TEXTS, batch_size=1) == once
    assert guess(model, tokenizer, TEXTS, batch_size=3) == once
    assert [guess(model, tokenizer, [row])[0] for row in TEXTS] == once


def test_words_of_several_pieces_and_unknown_ones_have_no_guesses() -> None:
    model, tokenizer = made("bert")
    (row,) = guess(model, tokenizer, [Example("films unknownword film")])
    assert [bool(words) for words in row] == [False, False, True]


def test_a_letter_of_several_pieces_is_not_one_piece() -> None:
    model, tokenizer = made("bytes")
    (row,) = guess(model, tokenizer, [Example(" film é film")])
    assert [bool(words) for words in row] == [True, False, True]


@pytest.mark.parametrize("kind", KINDS)
def test_guesses_are_whole_words_other_than_the_word(kind: str) -> None:
    model, tokenizer = made(kind)
    pieces = set(tiny.WORDS) if kind != "bytes" else {*tiny.WORDS, "x"}
    (row,) = guess(model, tokenizer, [Example("the film was FILM")], candidates=100)
    for word, words in zip(["the", "film", "was", "film"], row, strict=True):
        assert word not in {w.lower() for w in words}
        assert all(w.isalpha() for w in words)
        assert not {w for w in words if kind != "bytes" and w not in pieces}


def test_a_word_with_accents_is_not_replaced_by_itself_without() -> None:
    model, tokenizer = made("bert")
    (row,) = guess(model, tokenizer, [Example("the fîlm")], candidates=100)
    assert "great" in row[1]
    assert "film" not in row[1]


def test_specials_are_no_words() -> None:
    found = whole_words(tiny.tokenizer(), lambda word: True)[1]
    assert found == [word for word in tiny.WORDS if not word.startswith("##")]


def test_only_as_many_as_asked() -> None:
    model, tokenizer = made("bert")
    (few,), (many,) = (guess(model, tokenizer, TEXTS[:1], candidates=k) for k in (2, 7))
    assert [words[:2] for words in many] == few
    assert {len(words) for words in many} == {7}


def test_words_past_the_limit_have_no_guesses() -> None:
    model, tokenizer = made("bert")
    row = Example("film " * 30)
    (found,) = guess(model, tokenizer, [row], max_length=12)
    assert [bool(words) for words in found] == [True] * 10 + [False] * 20
    (second,) = guess(model, tokenizer, [Example("film " * 30, "film soup")], max_length=12)
    assert [bool(words) for words in second[-2:]] == [True, True]


def test_bf16_guesses_are_close() -> None:
    model, tokenizer = made("bert")
    exact, rough = (guess(model, tokenizer, TEXTS, precision=p) for p in ("float32", "bf16"))
    pairs = [
        (set(a), set(b))
        for x, y in zip(exact, rough, strict=True)
        for a, b in zip(x, y, strict=True)
    ]
    shared = sum(len(a & b) for a, b in pairs) / sum(len(a) for a, _ in pairs)
    assert shared > 0.8


def test_nothing_asked_nothing_done() -> None:
    model, tokenizer = made("bert")
    guesses = MaskedGuesses(model, tokenizer, candidates=3, max_length=64)
    assert guesses([Example("the")], [[]]) == [[]]
    assert guesses([], []) == []


def test_a_broken_model_is_refused() -> None:
    model, tokenizer = made("bert")
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(RunError, match="not finite"):
        guess(model, tokenizer, TEXTS)
    tokenizer.mask_token = None
    with pytest.raises(ModelError, match="mask token"):
        MaskedGuesses(model, tokenizer, candidates=3, max_length=64)


def test_whole_words_of_word_pieces() -> None:
    ids, words = whole_words(tiny.tokenizer())
    assert words == [word for word in tiny.WORDS if word.isalpha()]
    assert tiny.tokenizer().convert_tokens_to_ids(words) == ids.tolist()
    few = whole_words(tiny.tokenizer(), lambda word: word in ("film", "soup", "##s"))
    assert few[1] == ["film", "soup"]


def test_whole_words_of_bytes() -> None:
    ids, words = whole_words(byte_level())
    assert {"film", "soup", "great"} <= set(words)
    assert all(byte_level().convert_ids_to_tokens(int(i)).startswith("Ġ") for i in ids)
    assert words == [word.strip() for word in words]


@pytest.mark.parametrize("kind", ["bert", "bytes"])
def test_word_vectors_are_the_embeddings_or_their_mean(kind: str) -> None:
    model, tokenizer = made(kind)
    table = embedding_words(model, tokenizer)
    weight = model.get_input_embeddings().weight.detach().numpy()
    mark = "Ġ" if kind == "bytes" else ""
    own = weight[tokenizer.convert_tokens_to_ids(mark + "film")]
    np.testing.assert_array_equal(table.vectors_WH[table.words.index("film")], own)
    several = tokenizer.tokenize((" " if mark else "") + "films")
    assert len(several) > 1
    mean = np.mean([weight[tokenizer.convert_tokens_to_ids(piece)] for piece in several], 0)
    found = table.lookup(["films", "film", "unknown\u2603"])
    np.testing.assert_allclose(found[0], mean, rtol=1e-6)
    np.testing.assert_array_equal(found[1], own)
    if kind == "bert":
        assert not found[2].any()
