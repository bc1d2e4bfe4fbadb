"""What marks are drawn from: what a model reads, so that forms of one question are one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from guarded import Made
from hypothesis import given
from hypothesis import strategies as st

import tiny
from stillhouse.core.types import Example
from stillhouse.data.encoding import token_rows
from stillhouse.guard.model import ServedModel
from stillhouse.guard.reading import (
    Reading,
    TokenizerReads,
    TokenRow,
    as_written,
    reading_of,
    words,
)

TEXT = "the good film was a very bad film"
FORMS = [
    "the good film was a very bad film.",
    "The GOOD film,was a very\tbad  film",
    "the good\x07 film was a very bad film",
    "the good\x7f film was a very bad film",
    "the g\u200bood film was a very bad film",
    "film the film good was a very bad film",
    "the good film was a very bad film ?!",
    "the good film \ufffd was a very bad film",
]


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_question_are_one(form: str, served: ServedModel) -> None:
    one, other = served.reads([Example(TEXT), Example(form)])
    assert one.content == other.content


@pytest.mark.parametrize("form", FORMS)
def test_so_they_are_where_no_model_is_known(form: str) -> None:
    assert as_written(Example(TEXT)).content == as_written(Example(form)).content


def test_what_is_cut_off_changes_nothing(served: ServedModel) -> None:
    long = " ".join([TEXT] * 40)
    cut, other = served.reads([Example(long + " awful soup"), Example(long + " lovely story")])
    assert cut.content == other.content
    assert cut.tokens == other.tokens == served.max_length


def test_other_words_are_another_question(served: ServedModel) -> None:
    asked = ["a good film", "a bad film", "good", "a good story", "\u4e2d", "!?", ""]
    contents = [each.content for each in served.reads([Example(text) for text in asked])]
    assert len({*contents[:4]}) == 4
    pairs = [Example("good", "bad"), Example("bad", "good"), Example("good bad")]
    assert len({each.content for each in served.reads(pairs)}) == 3


@given(st.text(max_size=40), st.none() | st.text(max_size=40))
def test_content_is_a_function_of_the_ids_alone(text: str, pair: str | None) -> None:
    tokenizer = tiny.tokenizer()
    (ids_T,), (second,) = token_rows([Example(text, pair)], tokenizer, max_length=32)
    row = TokenRow(ids_T, second)
    again = TokenRow(np.array(row.ids_T.tolist()), row.second)
    found = reading_of([row], tokenizer)
    assert found == reading_of([again], tokenizer)
    assert "\x00" not in found.content  # no database keeps it
    found.content.encode()
    assert found.content


def test_what_no_word_is_in_is_as_it_stands() -> None:
    assert words("?! ?") == "?!?"
    assert words("Straße, STRASSE") == "strasse"
    assert words("") == ""


def test_the_tokenizer_alone_reads_as_the_model_does(served: ServedModel, tmp_path: Path) -> None:
    reads = TokenizerReads(tiny.save(tmp_path / "m", seed=3), max_length=served.max_length)
    asked = [Example(TEXT), Example("a good film", "a bad story"), Example("film " * 500)]
    theirs = [Reading(each.content, each.tokens) for each in served.reads(asked)]
    assert reads(asked) == theirs


def test_forms_share_their_decision_and_wrong_answer(make: Made, served: ServedModel) -> None:
    """Asked in every form, in batches or alone, no answer of a question differs from the others:
    nobody finds a mark by that, or takes it away by a majority of forms."""
    guard = make(marks={"rate": 0.3, "early": 0, "controls": 1}, reads=served.reads)
    ann = guard.registry.create_client("ann")[0].id
    texts = list(dict.fromkeys(text for text, _ in tiny.sentences(60, seed=7)))
    made = [str, str.upper, lambda t: t + " .", lambda t: t[0] + "\x07" + t[1:],
            lambda t: " ".join(reversed(t.split()))]  # fmt: skip
    truth = {text: served.answers([Example(text)])[0] for text in texts}

    def predict(examples: object) -> list[object]:  # of every form the same: it is not the point
        return [truth[asked[each]] for each in examples]  # pyright: ignore

    told: dict[str, set[str]] = {}
    asked: dict[Example, str] = {}
    for form in made:
        examples = [Example(form(text)) for text in texts]
        asked = dict(zip(examples, texts, strict=True))
        for example, answer in zip(examples, guard.answer(ann, examples, predict), strict=True):  # pyright: ignore
            told.setdefault(asked[example], set()).add(answer["label"])
    assert all(len(labels) == 1 for labels in told.values())
    assert 5 < sum(each.kind == "mark" for each in guard.registry.evidence()) < len(texts) / 2
