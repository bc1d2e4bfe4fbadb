"""The model as it is served: the answers are those of the audit's own victim."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from stillhouse.core.errors import DataError, ModelError
from stillhouse.core.types import Example
from stillhouse.guard.membership import Head
from stillhouse.guard.model import Part, ServedModel, Truth, whole
from stillhouse.models.load import load_classifier, load_tokenizer

TEXTS = ["a good film", "the soup was awful , cold and dark .", "", "we", "not bad " * 30]


def by_itself(folder: Path, text: str, pair: str | None = None) -> np.ndarray:
    """The probabilities of transformers' own forward, of one question alone."""
    tokenizer, model = load_tokenizer(str(folder)), load_classifier(str(folder))
    pairs = None if pair is None else [pair]  # a lone "" would be taken for none
    inputs = tokenizer([text], pairs, truncation=True, max_length=64, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits.double().softmax(-1)[0].numpy()


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_answers_are_the_models_in_their_order(kind: str, folders: Callable[..., Path]) -> None:
    folder = folders(kind)
    model = ServedModel(folder, precision="float32")
    for text, found in zip(TEXTS, model.answers([Example(t) for t in TEXTS]), strict=True):
        assert found.probabilities_K == pytest.approx(by_itself(folder, text), abs=1e-5)
        assert found.odd is None


def test_pairs_and_single_texts_in_one_request(folders: Callable[..., Path]) -> None:
    folder = folders("bert")
    model = ServedModel(folder, precision="float32")
    asked = [Example("a film"), Example("a film", "the book"), Example("we"), Example("we", "")]
    for each, found in zip(asked, model.answers(asked), strict=True):
        assert found.probabilities_K == pytest.approx(
            by_itself(folder, each.text, each.pair), abs=1e-5
        )


def test_nothing_asked_is_nothing(served: ServedModel) -> None:
    assert served.answers([]) == []


def test_spans_come_from_their_passages(tmp_path: Path) -> None:
    model = ServedModel(tiny.save_spans(tmp_path), precision="float32", max_length=24)
    passage = "the film was good and the soup was bad but " * 6
    asked = [Example("the film ?", passage), Example("we ?", "the hotel was fine")]
    found = model.answers(asked)
    for each, truth in zip(asked, found, strict=True):
        assert truth.text
        assert each.pair is not None
        assert truth.text in each.pair
    alone = [model.answers([each])[0].text for each in asked]
    assert [truth.text for truth in found] == alone
    with pytest.raises(DataError, match="passage"):
        model.answers([Example("the film ?")])


def test_of_a_long_passages_windows_the_surest_answers(tmp_path: Path) -> None:
    model = ServedModel(tiny.save_spans(tmp_path), precision="float32", max_length=24)
    asked = [Example("the film ?", "the film was good and the soup was bad but " * 3)]
    (read,) = model.reads(asked)
    assert len(read.rows) >= 3
    assert read.tokens == sum(len(row.ids_T) for row in read.rows)
    passage = asked[0].pair or ""
    answers = []
    for sure in range(len(read.rows)):
        scores_NT = torch.full((2 * len(read.rows), max(map(len, read.rows))), -10.0)
        for window, row in enumerate(read.rows):
            assert row.chars_T2 is not None
            place = int(np.flatnonzero(row.chars_T2[:, 1])[window])
            scores_NT[2 * window : 2 * window + 2, place] = 5.0 if window == sure else 1.0
        chars_T2 = read.rows[sure].chars_T2
        assert chars_T2 is not None
        begin, end = chars_T2[np.flatnonzero(chars_T2[:, 1])[sure]]
        parts = [Part(Truth(text=t), s) for t, s in model._spans(read.rows, scores_NT)]
        assert whole(parts, read).text == passage[begin:end]
        answers.append((begin, end))
    assert len(set(answers)) == len(read.rows)


@pytest.mark.parametrize("task", ["classification", "span"])
def test_answers_are_their_rows_in_any_passes(task: str, tmp_path: Path) -> None:
    """Read one by one, and run row by row."""
    if task == "span":
        model = ServedModel(tiny.save_spans(tmp_path), precision="float32", max_length=24)
        passage = "the film was good and the soup was bad but " * 6
        asked = [Example("the film ?", passage), Example("we ?", "the hotel was fine")]
    else:
        model = ServedModel(tiny.save(tmp_path, seed=3), precision="float32")
        asked = [Example(text) for text in TEXTS] + [Example("a film", "the book")]
    reads = [model.read(each) for each in asked]
    found = [whole([model.answer_rows([row])[0] for row in read.rows], read) for read in reads]
    for truth, expected in zip(found, model.answers(asked), strict=True):
        assert truth.text == expected.text
        if expected.probabilities_K is not None:
            assert truth.probabilities_K == pytest.approx(expected.probabilities_K, abs=1e-6)


def head_of(model: ServedModel, features: str = "both", line: float = 0.0) -> Head:
    generator = torch.Generator().manual_seed(0)
    return Head(
        torch.randn(64, 32, generator=generator), torch.randn(2, generator=generator),
        torch.tensor(0.5), line, 0.01, features, model.fingerprint,  # pyright: ignore
    )  # fmt: skip


@pytest.mark.parametrize("features", ["both", "last", "logits"])
def test_scores_by_hand(features: str, folders: Callable[..., Path]) -> None:
    folder = folders("bert")
    head = head_of(ServedModel(folder, precision="float32"), features, line=0.25)
    model = ServedModel(folder, head=head, precision="float32")
    tokenizer, plain = load_tokenizer(str(folder)), load_classifier(str(folder))
    for text, found in zip(TEXTS, model.answers([Example(t) for t in TEXTS]), strict=True):
        inputs = tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
        with torch.no_grad():
            output = plain(**inputs, output_hidden_states=True)
        states_TH, logits_K = output.hidden_states[-1][0], output.logits[0]
        by_hand = 0.5 - 0.25
        if features != "logits":
            by_hand += float((states_TH * head.states_TH[: len(states_TH)]).sum())
        if features != "last":
            by_hand += float(logits_K @ head.logits_K)
        assert found.odd == pytest.approx(by_hand, abs=1e-3)


def test_a_check_of_another_model_is_refused(
    served: ServedModel, folders: Callable[..., Path], tmp_path: Path
) -> None:
    head = head_of(served)
    head.save(tmp_path)
    again = Head.load(tmp_path)
    assert torch.equal(again.states_TH, head.states_TH)
    assert again.line == head.line
    with pytest.raises(ModelError, match="another model"):
        ServedModel(folders("bert"), head=again)


def test_what_is_no_check_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="guard learn"):
        Head.load(tmp_path)
    (tmp_path / "membership.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="is no membership check"):
        Head.load(tmp_path)
