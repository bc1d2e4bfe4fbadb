"""Stored token ids are what the tokenizer gives, padded."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from stillhouse.core.config import DataConfig
from stillhouse.data import encoding
from stillhouse.data.encoding import Encoded, encode, tokenizer_fingerprint
from stillhouse.data.sources import Part, Pool, load

ROWS = tiny.sentences(60)
PAIRS = [(a, b, label) for (a, label), (b, _) in itertools.pairwise(ROWS)]


def pool(tmp_path: Path, *, pairs: bool) -> Pool:
    names = ["sentence1", "sentence2", "label"] if pairs else ["text", "label"]
    path = tiny.write_csv(tmp_path / "data.csv", names, PAIRS if pairs else ROWS)
    return load(DataConfig(path=str(path)), tmp_path / "rows").train


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("pairs", [False, True], ids=["single", "pairs"])
@pytest.mark.parametrize("length", [8, 64])
def test_inputs_equal_the_tokenizers_own(
    tmp_path: Path, kind: str, pairs: bool, length: int
) -> None:
    tokenizer = tiny.tokenizer(kind)
    rows = pool(tmp_path, pairs=pairs)
    encoded = encode(rows, tokenizer, tmp_path, max_length=length)
    asked = np.array([5, 0, 33, 5])
    examples = rows.at(asked)
    expected = tokenizer(
        [e.text for e in examples],
        [e.pair for e in examples] if pairs else None,
        truncation=True,
        max_length=length,
        padding=True,
        pad_to_multiple_of=4,
        return_tensors="pt",
    )
    found = encoded.inputs(asked)
    assert set(found) == set(expected)
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
    assert encoded.lengths[asked].tolist() == expected["attention_mask"].sum(1).tolist()
    assert (encoded.lengths == length).any() == (length == 8)


def test_no_row_is_padded_beyond_what_a_model_takes(tmp_path: Path) -> None:
    encoded = encode(pool(tmp_path, pairs=True), tiny.tokenizer(), tmp_path, max_length=6)
    widest = np.flatnonzero(encoded.lengths == 6)
    assert encoded.inputs(widest)["input_ids"].shape[1] == 6
    short = np.array([encoded.lengths.argmin()])
    assert encoded.inputs(short)["input_ids"].shape[1] <= 6


def test_a_stored_pool_is_not_encoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, asked, written = pool(tmp_path, pairs=False), [], []
    write = encoding._write
    monkeypatch.setattr(encoding, "_write", lambda *a: (written.append(a), write(*a)))
    for length in (16, 16, 12):
        encode(rows, tiny.tokenizer(), tmp_path / "t", max_length=length, progress=asked.append)
    assert len(written) == 2, "another length is another encoding"
    assert asked == [len(rows)] * 3


def test_two_runs_may_encode_the_same_pool_at_once(tmp_path: Path) -> None:
    rows = pool(tmp_path, pairs=False)

    def meanwhile(_: int) -> None:
        encode(rows, tiny.tokenizer(), tmp_path / "tokens", max_length=16)

    first = encode(rows, tiny.tokenizer(), tmp_path / "tokens", max_length=16, progress=meanwhile)
    assert len(first) == len(rows)
    assert len(list((tmp_path / "tokens").iterdir())) == 1


def test_an_empty_pool_encodes_to_nothing(tmp_path: Path) -> None:
    empty: list[Part] = []
    found = encode(Pool(empty), tiny.tokenizer(), tmp_path, max_length=16)
    assert isinstance(found, Encoded)
    assert len(found) == 0


def test_the_fingerprint_follows_what_a_tokenizer_does() -> None:
    plain = tokenizer_fingerprint(tiny.tokenizer())
    assert plain == tokenizer_fingerprint(tiny.tokenizer())
    larger = tiny.tokenizer()
    larger.add_tokens(["naïve"])
    assert tokenizer_fingerprint(larger) != plain
    assert tokenizer_fingerprint(tiny.tokenizer("distilbert")) == plain
    left = tiny.tokenizer()
    left.truncation_side = "left"
    assert tokenizer_fingerprint(left) != plain
    used = tiny.tokenizer()
    used(["the film", "the"], padding=True, truncation=True, max_length=5)
    assert tokenizer_fingerprint(used) == plain
    other = tiny.tokenizer("roberta")  # as many words, other ids
    assert len(other) == len(tiny.tokenizer())
    assert tokenizer_fingerprint(other) != plain


@pytest.mark.parametrize("pairs", [False, True], ids=["single", "pairs"])
def test_rows_that_are_cut_are_counted_and_those_that_fit_exactly_are_not(
    tmp_path: Path, pairs: bool
) -> None:
    rows, tokenizer = pool(tmp_path, pairs=pairs), tiny.tokenizer()
    whole = encode(rows, tokenizer, tmp_path / "t", max_length=512)
    assert whole.cut == 0
    length = int(np.median(whole.lengths))
    assert (whole.lengths == length).any(), "some rows fit exactly"
    for _ in range(2):  # made, and read from disk
        found = encode(rows, tokenizer, tmp_path / "t", max_length=length)
        assert found.cut == (whole.lengths > length).sum() > 0
