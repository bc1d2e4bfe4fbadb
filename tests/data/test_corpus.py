"""Blocks hold the text, all of it, and each of it in one split only. Axes: T tokens."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

import tiny
from stillhouse.core.config import CorpusConfig
from stillhouse.core.errors import DataError, RunError
from stillhouse.data import corpus as module
from stillhouse.data import documents as reading
from stillhouse.data.corpus import Blocks, Corpus, corpus_bytes, load_corpus, special_ids

LINES = [text for text, _ in tiny.sentences(400)]
BERT = tiny.tokenizer()


def write(folder: Path, **files: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def cut(
    path: Path, store: Path, tokenizer: PreTrainedTokenizerBase = BERT, **settings: Any
) -> Corpus:
    config = CorpusConfig(path=str(path), **{"length": 16, "held_out": 0.2, **settings})
    return load_corpus(config, tokenizer, store, max_length=64)


def blocks_of(blocks: Blocks) -> list[list[int]]:
    """Ids of each block, one at a time."""
    return [
        blocks.inputs(np.array([i]))["input_ids"][0, :n].tolist()
        for i, n in enumerate(blocks.lengths)
    ]


def insides(blocks: Blocks) -> list[int]:
    return [token for block in blocks_of(blocks) for token in block[1:-1]]


def plain(lines: list[str], tokenizer: PreTrainedTokenizerBase = BERT) -> list[list[int]]:
    return tokenizer(lines, add_special_tokens=False)["input_ids"]


def documents(blocks: Blocks, tokenizer: PreTrainedTokenizerBase = BERT) -> set[tuple[int, ...]]:
    """The documents in packed blocks, but for the last, which may be cut."""
    tokens, sep = insides(blocks), tokenizer.sep_token_id
    groups = itertools.groupby(tokens, lambda token: token == sep)
    found = [tuple(group) for is_sep, group in groups if not is_sep]
    return set(found[:-1])


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("length", [8, 16, 33])
def test_packed_blocks_hold_the_documents_joined_by_the_separator(
    tmp_path: Path, kind: str, length: int
) -> None:
    tokenizer = tiny.tokenizer(kind)
    texts = {"train": LINES[:300], "valid": LINES[300:350], "test": LINES[350:]}
    found = cut(write(tmp_path / "text", **texts), tmp_path, tokenizer, length=length)
    assert found.notes == []
    for blocks, name in (
        (found.train, "train"),
        (found.held_out, "valid"),
        (found.reported, "test"),
    ):
        ids, sep = plain(texts[name], tokenizer), tokenizer.sep_token_id
        joined = [token for document in ids for token in (sep, *document)][1:]
        held = insides(blocks)
        assert held == joined[: len(held)]
        assert sum(token != sep for token in joined[len(held) :]) < 8, (
            "only a short tail is left out"
        )
        assert {block[0] for block in blocks_of(blocks)} == {tokenizer.cls_token_id}
        assert {block[-1] for block in blocks_of(blocks)} == {sep}
        assert (blocks.lengths[:-1] == length).all()


@pytest.mark.parametrize("tokens, kept", [(7, False), (8, True)])
def test_the_last_block_stays_if_it_has_eight_tokens(
    tmp_path: Path, tokens: int, kept: bool
) -> None:
    text = [" ".join(["the"] * (2 * 14 + tokens))]
    path = write(tmp_path / "text", train=LINES, valid=LINES[:100], test=text)
    assert cut(path, tmp_path).reported.lengths.tolist() == [16, 16] + [tokens + 2] * kept


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_inputs_equal_the_tokenizers_own_padding(tmp_path: Path, kind: str) -> None:
    tokenizer = tiny.tokenizer(kind)
    path = write(tmp_path / "text", train=[line * 2 for line in LINES])
    train = cut(path, tmp_path, tokenizer, packed=False, length=17).train
    rows = np.array([5, 0, 33, 5])
    ids = blocks_of(train)
    features = [{"input_ids": ids[row]} for row in rows]
    expected = tokenizer.pad(features, pad_to_multiple_of=4, return_tensors="pt")
    found = train.inputs(rows)
    names = set(tokenizer.model_input_names)
    assert set(found) == names
    for name in ("input_ids", "attention_mask"):
        width = found[name].shape[1]
        assert torch.equal(found[name], expected[name][:, :width]), name
    if "token_type_ids" in names:
        assert torch.equal(found["token_type_ids"], torch.zeros_like(found["input_ids"]))
    assert train.lengths[rows].tolist() == found["attention_mask"].sum(1).tolist()


def test_chunked_blocks_are_pieces_of_one_document(tmp_path: Path) -> None:
    lines = [" ".join(LINES[i : i + 6]) for i in range(0, 300, 6)]
    path = write(tmp_path / "text", train=lines, valid=LINES[300:320], test=LINES[320:])
    found = cut(path, tmp_path, packed=False)
    pieces = [ids[i : i + 14] for ids in plain(lines) for i in range(0, len(ids), 14)]
    long = [piece for piece in pieces if len(piece) >= 10]
    assert 0 < len(long) < len(pieces)
    cls, sep = BERT.cls_token_id, BERT.sep_token_id
    assert blocks_of(found.train) == [[cls, *piece, sep] for piece in long]
    short = len(pieces) - len(long)
    assert f"pieces of fewer than 12 tokens left out of train: {short}" in found.notes[-1]


def test_chunked_blocks_of_mostly_unknown_tokens_are_left_out(tmp_path: Path) -> None:
    def line(known: int, first: str) -> str:
        return " ".join([first, *["the"] * (known - 1), *["xyzzy"] * (14 - known)])

    texts = [line(known, first) for known in (6, 7) for first in ("film", "book", "meal")]
    path = write(tmp_path / "text", train=texts, valid=LINES[:90], test=LINES[90:180])
    found = cut(path, tmp_path, packed=False)
    assert len(found.train) == 3  # 7 of 16 tokens are unknown; 8 of 16 are too many
    assert "mostly unknown tokens left out of train: 3" in " ".join(found.notes)
    packed = cut(path, tmp_path)
    assert len(packed.train) == 6
    assert BERT.unk_token_id in insides(packed.train)


def test_a_single_file_is_cut_by_content(tmp_path: Path) -> None:
    path = write(tmp_path, text=LINES) / "text.txt"
    found = cut(path, tmp_path / "store", held_out=0.2, reported=0.3)
    parts = [documents(b) for b in (found.train, found.held_out, found.reported)]
    assert all(not (a & b) for a, b in itertools.combinations(parts, 2))
    assert len(set.union(*parts)) == len(LINES) - 3  # each split's last is not counted
    assert 90 < len(parts[2]) < 150  # 120 expected, four standard deviations are 37
    assert 35 < len(parts[1]) < 80  # 56 expected
    assert found.notes == []


def test_a_line_stays_in_its_split_when_the_file_changes(tmp_path: Path) -> None:
    one = cut(write(tmp_path / "1", text=LINES[:300]) / "text.txt", tmp_path / "store")
    other = write(tmp_path / "2", text=[*LINES[300:], *LINES[299::-1]]) / "text.txt"
    two = cut(other, tmp_path / "store")
    splits = ("train", "held_out", "reported")
    for mine, theirs in itertools.permutations(splits, 2):
        assert not documents(getattr(one, mine)) & documents(getattr(two, theirs))


def test_the_same_line_in_other_letters_is_in_the_same_split(tmp_path: Path) -> None:
    lines = [form for line in LINES[:200] for form in (line, line.upper(), f"  {line}\t")]
    found = cut(write(tmp_path, text=lines) / "text.txt", tmp_path / "store", reported=0.3)
    parts = [documents(b) for b in (found.train, found.held_out, found.reported)]
    assert all(not (a & b) for a, b in itertools.combinations(parts, 2))
    assert all(parts)


@pytest.mark.parametrize("name", ["valid", "dev", "validation", "test"])
def test_a_folder_with_one_more_file_reports_on_it(tmp_path: Path, name: str) -> None:
    found = cut(write(tmp_path / "a", train=LINES[:300], **{name: LINES[300:]}), tmp_path)
    assert documents(found.reported) == set(map(tuple, plain(LINES[300:-1])))
    rest = documents(found.train) | documents(found.held_out)
    assert rest <= set(map(tuple, plain(LINES[:300])))
    assert len(rest) == 298
    assert 30 < len(documents(found.held_out)) < 92


def test_training_lines_that_are_held_out_or_reported_are_left_out(tmp_path: Path) -> None:
    train = [*LINES[:300], *(line.title() for line in LINES[300:310]), LINES[390], LINES[390]]
    valid = [*LINES[300:350], LINES[391]]
    found = cut(write(tmp_path / "a", train=train, valid=valid, test=LINES[350:]), tmp_path)
    parts = [documents(b) for b in (found.train, found.held_out, found.reported)]
    assert all(not (a & b) for a, b in itertools.combinations(parts, 2))
    assert [note.partition(": ")[2] for note in found.notes] == [
        "lines of valid.txt left out, held out or reported too: 1",
        "lines of train.txt left out, held out or reported too: 12",
    ]


def test_a_block_is_never_in_two_splits(tmp_path: Path) -> None:
    """Lines that differ after the first piece only."""
    same = " ".join(["the", "film", "was", "very"] * 6)[:-5]
    texts = {"train": [*LINES, f"{same} good"], "valid": [f"{same} dull", *LINES[:90]]}
    path = write(tmp_path / "text", **texts, test=[f"{same} slow", *LINES[90:200]])
    found = cut(path, tmp_path, packed=False)
    parts = [
        {tuple(block) for block in blocks_of(b)}
        for b in (found.train, found.held_out, found.reported)
    ]
    assert all(not (a & b) for a, b in itertools.combinations(parts, 2))
    assert found.notes[-1].endswith("blocks left out, in another split too: 2")


def test_a_stored_corpus_is_not_tokenised_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "text", train=LINES, valid=LINES[:60])
    config, told = CorpusConfig(path=str(path), length=16, held_out=0.2), []
    arguments: dict[str, Any] = {"max_length": 64, "progress": told.append}
    first = load_corpus(config, BERT, tmp_path / "store", **arguments)
    assert sum(told) == corpus_bytes(config)
    calls = []
    tokenised = module.tokenised
    monkeypatch.setattr(module, "tokenised", lambda *a: (calls.append(a), tokenised(*a))[1])
    second = load_corpus(config, BERT, tmp_path / "store", **arguments)
    assert not calls
    assert sum(told) == 2 * corpus_bytes(config)
    assert (second.fingerprint, second.notes) == (first.fingerprint, first.notes)
    for a, b in ((first.train, second.train), (first.reported, second.reported)):
        assert blocks_of(a) == blocks_of(b)
        assert (a.keys_N2 == b.keys_N2).all()
    changes: list[dict[str, Any]] = [{"length": 12}, {"packed": False}, {"held_out": 0.1}]
    for change in changes:
        load_corpus(config.model_copy(update=change), BERT, tmp_path / "store", max_length=64)
    load_corpus(config, tiny.tokenizer("roberta"), tmp_path / "store", max_length=64)
    load_corpus(config, BERT, tmp_path / "store", max_length=14)
    write(path, train=LINES[:-1])
    changed = load_corpus(config, BERT, tmp_path / "store", max_length=64)
    assert len(calls) == 6
    assert changed.fingerprint != first.fingerprint


def test_two_runs_may_cut_the_same_corpus_at_once(tmp_path: Path) -> None:
    config = CorpusConfig(path=str(write(tmp_path, text=LINES) / "text.txt"), length=16)
    begun = []

    def meanwhile(_: int) -> None:
        if not begun:
            begun.append(True)
            load_corpus(config, BERT, tmp_path / "store", max_length=64)

    found = load_corpus(config, BERT, tmp_path / "store", max_length=64, progress=meanwhile)
    assert len(found.train)
    assert len(list((tmp_path / "store").iterdir())) == 1


def test_nothing_is_left_of_a_cut_that_failed(tmp_path: Path) -> None:
    path = write(tmp_path, text=LINES) / "text.txt"
    path.write_bytes(path.read_bytes() + b"caf\xe9\n")
    with pytest.raises(DataError, match="line 401 is not UTF-8"):
        cut(path, tmp_path / "store")
    assert list((tmp_path / "store").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"is not written \(tokens"):
        cut(write(tmp_path, text=LINES) / "text.txt", tmp_path / "file")


def test_rows_are_a_draw_by_content(tmp_path: Path) -> None:
    path = write(tmp_path / "text", train=LINES[:300], valid=LINES[300:])
    whole, some = cut(path, tmp_path), cut(path, tmp_path, rows=40)
    more = cut(path, tmp_path, rows=41)
    assert [len(c.train) for c in (whole, some, more)] == [len(whole.train), 40, 41]
    every, chosen = blocks_of(whole.train), blocks_of(some.train)
    places = [every.index(block) for block in chosen]
    assert places == sorted(places), "in the corpus's order"
    assert places != list(range(40)), "not the first ones"
    assert (some.train.keys_N2 == whole.train.keys_N2[places]).all()
    assert set(map(tuple, chosen)) < set(map(tuple, blocks_of(more.train)))
    assert len(some.reported) == len(whole.reported)
    assert some.fingerprint != whole.fingerprint
    counted = np.bincount(np.concatenate(chosen), minlength=len(BERT))
    assert some.train.counts().tolist() == counted.tolist()
    assert len(cut(path, tmp_path, rows=10**6).train) == len(whole.train)


def test_counts_are_of_every_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COUNTED", 7)
    found = cut(write(tmp_path / "text", train=LINES, valid=LINES[:60]), tmp_path)
    expected = np.bincount(np.concatenate(blocks_of(found.train)), minlength=len(BERT))
    assert found.train.counts().tolist() == expected.tolist()
    assert found.train.counts() is found.train.counts()
    assert found.train.special == set(range(5)) == special_ids(BERT)


def test_special_tokens_are_those_that_were_added_as_such_too() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens([AddedToken("<speaker>", special=True)], special_tokens=True)
    tokenizer.add_tokens(["naïve"])  # a word
    assert special_ids(tokenizer) == {*range(5), 65}


def test_keys_stand_for_a_blocks_ids(tmp_path: Path) -> None:
    lines = [" ".join(["the"] * 140), *LINES]
    found = cut(write(tmp_path / "text", train=lines, valid=LINES[:60]), tmp_path)
    keys: dict[tuple[int, ...], set[bytes]] = {}
    for block, key in zip(blocks_of(found.train), found.train.keys_N2, strict=True):
        keys.setdefault(tuple(block), set()).add(key.tobytes())
    assert len(keys) < len(found.train), "the first ten blocks are one"
    assert {len(of_one) for of_one in keys.values()} == {1}
    assert len(set.union(*keys.values())) == len(keys)


@pytest.mark.parametrize("form", ["bom", "crlf", "blank lines", "no last newline"])
def test_forms_of_a_file_that_hold_the_same_text(tmp_path: Path, form: str) -> None:
    plain_bytes = write(tmp_path / "1", text=LINES).joinpath("text.txt").read_bytes()
    changed = {
        "bom": b"\xef\xbb\xbf" + plain_bytes,
        "crlf": plain_bytes.replace(b"\n", b"\r\n"),
        "blank lines": b" \n\n" + plain_bytes.replace(b"\n", b"\n\t \n"),
        "no last newline": plain_bytes.rstrip(),
    }[form]
    (tmp_path / "2.txt").write_bytes(changed)
    one, two = cut(tmp_path / "1/text.txt", tmp_path / "a"), cut(tmp_path / "2.txt", tmp_path / "b")
    assert one.fingerprint == two.fingerprint
    assert insides(one.train) == insides(two.train)
    told: list[int] = []
    config = CorpusConfig(path=str(tmp_path / "2.txt"), length=16)
    load_corpus(config, BERT, tmp_path / "c", max_length=64, progress=told.append)
    assert sum(told) == len(changed)


@pytest.mark.parametrize("packed", [True, False])
def test_long_lines_and_odd_letters(
    tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line longer than what is tokenised at once is the same tokens; so few letters at a time
    reach the tokenizer."""
    long = " ".join(LINES)
    texts = {"train": ["\u200b", "the \U0001f943 film", long, "x" * 999], "valid": LINES[:90]}
    path = write(tmp_path / "text", **texts, test=LINES[90:180])
    whole = cut(path, tmp_path / "1", packed=packed)
    sizes, tokenizer = [], tiny.tokenizer()
    call = type(tokenizer).__call__

    class Recorded(type(tokenizer)):
        def __call__(self, text: Any, *args: Any, **options: Any) -> Any:
            sizes.append(sum(map(len, text)))
            return call(self, text, *args, **options)

    tokenizer.__class__ = Recorded
    monkeypatch.setattr(reading, "CHARACTERS", 300)
    pieces = cut(path, tmp_path / "2", tokenizer, packed=packed)
    assert max(sizes) < 2 * 300
    assert len(long) > 30 * 300
    if packed:
        ids, sep = plain(texts["train"]), BERT.sep_token_id
        assert ids[0] == [], "a document without tokens is none"
        assert insides(whole.train)[: len(ids[1]) + 1] == [*ids[1], sep]
        assert insides(pieces.train)[:3000] == insides(whole.train)[:3000]
    else:
        assert blocks_of(pieces.train) == blocks_of(whole.train)


def bare(**names: str) -> PreTrainedTokenizerFast:
    core = Tokenizer(
        models.WordLevel(
            {w: i for i, w in enumerate(["?", "<a>", "<b>", *tiny.WORDS])}, unk_token="?"
        )
    )
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?", **names)


def test_marks_of_begin_and_end_stand_in_for_missing_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "text", train=LINES, valid=LINES[:60])
    found = cut(path, tmp_path, bare(bos_token="<a>", eos_token="<b>"))
    assert {(block[0], block[-1]) for block in blocks_of(found.train)} == {(1, 2)}
    for names in ({}, {"bos_token": "<a>"}, {"eos_token": "<b>"}):
        with pytest.raises(DataError, match="no token for the beginning or the end"):
            cut(path, tmp_path, bare(**names))


def test_no_share_leaves_a_split_empty(tmp_path: Path) -> None:
    path = write(tmp_path, text=LINES) / "text.txt"
    found = cut(path, tmp_path / "store", held_out=0, reported=0)
    assert (len(found.held_out), len(found.reported)) == (0, 0)
    assert found.held_out.counts().sum() == 0
    assert len(documents(found.train)) == len(LINES) - 1


def test_a_file_that_cannot_be_used_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    def file(name: str, content: bytes = b"the film\n") -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return str(path)

    def folder(name: str, **files: bytes) -> str:
        for of, content in files.items():
            file(f"{name}/{of.replace('_', '.')}", content)
        return str(tmp_path / name)

    many = "\n".join(LINES).encode()
    cases: dict[str, tuple[str, dict[str, Any]]] = {
        r"no file or folder .*nowhere.txt: check": (str(tmp_path / "nowhere.txt"), {}),
        r"table\.csv is a table.*\.txt": (file("table.csv"), {}),
        r"rows\.jsonl is a table.*\.txt": (file("rows.jsonl"), {}),
        r"a\.doc is no \.txt file: rename": (file("a.doc"), {}),
        r"one has no train\.txt; it holds test\.txt": (folder("one", test_txt=b"the"), {}),
        r"two has no train\.txt; it holds train\.csv": (folder("two", train_csv=b"the"), {}),
        r"several dev files \(dev\.txt, valid\.txt\)": (
            folder("three", train_txt=many, valid_txt=many, dev_txt=many),
            {},
        ),
        r"empty\.txt has no text": (file("empty.txt", b""), {}),
        r"blank\.txt has no text": (file("blank.txt", b"\xef\xbb\xbf \n\r\n\t"), {}),
        r"valid\.txt has no text": (folder("four", train_txt=many, valid_txt=b"\n"), {}),
        r"wide\.txt is UTF-16: save it as UTF-8": (
            file("wide.txt", "the film".encode("utf-16")),
            {},
        ),
        r"latin\.txt line 3 is not UTF-8": (file("latin.txt", b"a\n\ncaf\xe9\n"), {}),
        r"to report on: 0; .*its length.*\(reported\)": (file("few.txt"), {}),
        r"to select on: 0; .*\(held_out\)": (file("b.txt", many), {"held_out": 1e-9}),
        r"to train on: 0; at least 2": (file("c.txt", many), {"held_out": 1.0}),
        r"five: blocks .* to report on: 1; at least 2 are needed: give more text, shorter.*\)$": (
            folder("five", train_txt=many, valid_txt=b"the film was very good and we slept well"),
            {},
        ),
        r"six: blocks .* to train on: 0;": (folder("six", train_txt=many, test_txt=many), {}),
        r"blocks of 8 tokens are too short.*12": (
            file("d.txt", many),
            {"length": 8, "packed": False},
        ),
    }
    for message, (path, settings) in cases.items():
        with pytest.raises(DataError, match=message) as raised:
            cut(Path(path), tmp_path / "store", **settings)
        assert "\n" not in str(raised.value)
    config = CorpusConfig(path=file("e.txt", many))
    with pytest.raises(DataError, match="blocks of 4 tokens are too short"):
        load_corpus(config, BERT, tmp_path / "store", max_length=4)
