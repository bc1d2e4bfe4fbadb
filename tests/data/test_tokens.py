"""Tokenizers learnt from text, and whether two cut texts alike."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stillhouse.core.errors import DataError
from stillhouse.data.tokens import (
    PROBE,
    same_tokens,
    train_tokenizer,
    word_level_refusal,
)

BOTH = pytest.mark.parametrize("kind", ["bpe", "unigram"])
TASKS = pytest.mark.parametrize("task", ["seq2seq", "causal_lm"])
STRANGE = [*PROBE, "Ω never seen ж", "</s", "<0x41>", "a\u0308", "  ", "\n", "tab\tend "]


def texts(count: int = 300, seed: int = 0) -> list[str]:
    """Sentences of invented words, frequent and rare ones."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice([*"abcdefghijk"], size=rng.integers(2, 9))) for _ in range(200)]
    shares = 1 / np.arange(1, 201)
    drawn = rng.choice(words, size=(count, 10), p=shares / shares.sum())
    return [" ".join(row).capitalize() + "." for row in drawn.tolist()]


def learn(
    kind: str, task: str, size: int = 380, of: list[str] | None = None
) -> PreTrainedTokenizerFast:
    return train_tokenizer(of or texts(), kind=kind, size=size, task=task)


def lossless(kind: str, text: str) -> str:
    """What a text comes back as."""
    if kind == "bpe":
        return text
    form = unicodedata.normalize("NFC", text).replace("▁", " ")
    return form.removeprefix(" ")


def test_merges_by_hand() -> None:
    """Of "ab ab ab ac ac" the pair seen most often is joined first: a b, then a c; once is too
    seldom."""
    mine = train_tokenizer(["ab", "ab", "ab", "ac", "ac"], kind="bpe", size=261, task="seq2seq")
    assert [mine.convert_ids_to_tokens(i) for i in (0, 1, 2, 259, 260)] == [
        "<pad>", "</s>", "<unk>", "ab", "ac",
    ]  # fmt: skip
    assert mine("abac")["input_ids"] == [259, 260, 1]
    with pytest.raises(DataError, match="it fills 260; ask for 260 or fewer"):
        train_tokenizer(["ab", "ab", "ab", "ac"], kind="bpe", size=261, task="seq2seq")


@BOTH
@TASKS
def test_special_tokens_are_where_a_model_looks_for_them(kind: str, task: str) -> None:
    mine = learn(kind, task)
    assert len(mine) == mine.vocab_size == 380
    assert max(mine.get_vocab().values()) == 379
    assert mine.padding_side == "right"
    assert mine.model_input_names == ["input_ids", "attention_mask"]
    assert mine.model_max_length == 512
    coded = mine(["Ab", "Ab cde"], padding=True)
    assert set(coded) == {"input_ids", "attention_mask"}
    if task == "seq2seq":
        assert (mine.pad_token_id, mine.eos_token_id, mine.unk_token_id) == (0, 1, 2)
        assert mine.bos_token_id is None
        assert [ids.count(1) for ids in coded["input_ids"]] == [1, 1]
        assert coded["input_ids"][1][-1] == 1
        assert mine("Ab", "Ab")["input_ids"] == 2 * mine("Ab")["input_ids"]
    else:
        assert (mine.eos_token_id, mine.bos_token_id, mine.pad_token_id) == (0, 0, 1)
        assert not any(0 in ids for ids in coded["input_ids"])
    short = coded["input_ids"][0]
    assert short[-1] == mine.pad_token_id
    assert sum(coded["attention_mask"][0]) == len(short) - short.count(mine.pad_token_id)


@BOTH
@TASKS
def test_a_text_comes_back_and_special_tokens_do_not(kind: str, task: str) -> None:
    mine = learn(kind, task)
    for text in [*texts(20), *(text for text in STRANGE if "</" not in text)]:
        ids = mine(text)["input_ids"]
        assert mine.unk_token_id is None or mine.unk_token_id not in ids
        assert mine.decode(ids, skip_special_tokens=True) == lossless(kind, text), text


@BOTH
@TASKS
def test_a_saved_one_gives_the_same_ids(kind: str, task: str, tmp_path: Path) -> None:
    mine = learn(kind, task)
    mine.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.is_fast
    assert same_tokens(mine, again, texts(50)) is None
    for name in ("pad_token_id", "eos_token_id", "bos_token_id", "unk_token_id", "padding_side",
                 "model_max_length", "model_input_names"):  # fmt: skip
        assert getattr(again, name) == getattr(mine, name), name
    ids = again("Ab  cd .")["input_ids"]
    assert again.decode(ids, skip_special_tokens=True) == "Ab  cd ."


@BOTH
def test_the_same_texts_give_the_same_tokenizer(kind: str) -> None:
    found = {learn(kind, "seq2seq").backend_tokenizer.to_str() for _ in range(4)}
    assert len(found) == 1
    assert learn(kind, "seq2seq", of=texts(seed=1)).backend_tokenizer.to_str() not in found


@BOTH
def test_frequent_words_are_one_piece(kind: str) -> None:
    common = max(set(words := " ".join(texts()).split()), key=words.count)
    mine = learn(kind, "causal_lm", size=450)
    assert len(mine(f"a {common}", add_special_tokens=False)["input_ids"]) == 1 + len(
        mine("a")["input_ids"]
    )


def test_sizes_that_do_not_fit_say_which_would() -> None:
    for kind in ("bpe", "unigram"):
        with pytest.raises(DataError, match="too little for a vocabulary of 9000") as caught:
            learn(kind, "seq2seq", size=9000)
        fits = int(str(caught.value).split("--vocabulary ")[1].split(")")[0])
        assert len(learn(kind, "seq2seq", size=fits)) == fits
        with pytest.raises(DataError, match="can't hold the 259 entries"):
            learn(kind, "seq2seq", size=258)
        with pytest.raises(DataError, match="no text to learn"):
            train_tokenizer(["", "  "], kind=kind, size=300, task="seq2seq")
    many = ["".join(chr(0x4E00 + i) for i in range(100))]
    for size in (300, 359):
        with pytest.raises(DataError, match="characters of the training text: ask") as caught:
            train_tokenizer(many, kind="unigram", size=size, task="seq2seq")
    fits = int(str(caught.value).split("--vocabulary ")[1].split(")")[0])
    assert fits == 3 + 256 + 100 + 1  # special ones, bytes, characters, the space
    assert len(train_tokenizer(many, kind="unigram", size=fits, task="seq2seq")) == fits


# Whether two are the same.


def test_a_padded_vocabulary_is_the_same_tokenizer() -> None:
    mine, theirs = learn("bpe", "causal_lm"), learn("bpe", "causal_lm")
    theirs.add_tokens(["<extra_1>", "<extra_2>"])
    theirs.add_special_tokens({"pad_token": "<fill>"})
    assert len(theirs) == len(mine) + 3
    assert same_tokens(mine, theirs, texts(20)) is None
    assert same_tokens(theirs, mine, texts(20)) is None


def test_vocabularies_of_one_size_are_not_the_same_for_that() -> None:
    mine, theirs = learn("bpe", "causal_lm"), learn("bpe", "causal_lm", of=texts(seed=1))
    assert len(mine) == len(theirs)
    assert 'cut texts differently (first: "Stillhouse' in same_tokens(mine, theirs)


def words_only(*, swap: bool) -> PreTrainedTokenizerFast:
    """Letters by themselves, and one joined word whose id may be another's."""
    letters = [chr(i) for i in range(32, 127)]
    vocabulary = {t: i for i, t in enumerate(["<unk>", "</s>", *letters, "qzqz", "qzqx"])}
    if swap:
        vocabulary |= {"qzqz": vocabulary["qzqx"], "qzqx": vocabulary["qzqz"]}
    merges = [("q", "z"), ("q", "x"), ("qz", "qz"), ("qz", "qx")]
    vocabulary |= {"qz": 200, "qx": 201}
    core = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.decoder = decoders.BPEDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")


def test_the_users_own_texts_tell_what_the_built_in_ones_do_not() -> None:
    mine, theirs = words_only(swap=False), words_only(swap=True)
    assert same_tokens(mine, theirs) is None
    assert same_tokens(mine, theirs, ["fine", "a qzqz b"]) == (
        "they cut texts differently (first: 'a qzqz b' -> from token 2 on [97, 68] and [98, 68])"
    )


def test_what_frames_and_what_ends_a_text_must_agree_and_what_pads_need_not() -> None:
    mine, framed = learn("bpe", "seq2seq"), learn("bpe", "seq2seq")
    framed.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A </s>", pair=None, special_tokens=[("</s>", 1)]
    )
    assert "frame texts with other special tokens" in same_tokens(mine, framed)
    one, other, padded = (learn("bpe", "causal_lm") for _ in range(3))
    other.eos_token = "<pad>"
    assert same_tokens(one, other) == "they end a text with other ids (0 and 1)"
    padded.pad_token = "<|endoftext|>"
    assert same_tokens(one, padded) is None


def test_the_refusal_names_the_way_out() -> None:
    found = word_level_refusal("they cut texts differently (first: 'x' -> ...)")
    assert found.endswith(
        "(first: 'x' -> ...): distil at sequence level, --method seq-kd, which takes any tokenizer"
    )
