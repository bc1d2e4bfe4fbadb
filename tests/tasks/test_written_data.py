"""Batches of models that write: what stands where, and what is asked of which place."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillhouse.core.config import CorpusConfig
from stillhouse.data.columns import Columns
from stillhouse.data.corpus import load_corpus
from stillhouse.data.rows import ingest
from stillhouse.data.sources import Part, Pool
from stillhouse.data.tokens import train_tokenizer
from stillhouse.data.written import Kind, Rules, tokens_of
from stillhouse.tasks.writing import kept, merged, unkept
from stillhouse.tasks.written import RunningText, Written, continued, ranges, translated

TEXTS = ["the cat sat on the mat", "a dog ran to the house", "two birds sing", "the end"] * 3
PAIRS = [("the cat", "sat"), ("a dog ran to", "the house"), ("two", None), ("the end", "two birds")]


def written(kind: Kind, folder: Path, start: int | None = 0) -> Written:
    made: Any = train_tokenizer(TEXTS, kind="bpe", size=270, task=kind)
    rows = [{"source": s, "target": t} for s, t in PAIRS]
    found = ingest(enumerate(rows, 1), "x", Columns(texts=True), folder / "rows", labelled=True)
    pool = Pool([Part(found, found.kept, labelled=True)])
    tokens = tokens_of(pool, made, folder / "tokens", Rules(kind, 40, 40))
    return Written(kind, tokens, made, pool.labels.tolist(), start)


def test_a_target_is_predicted_from_what_stands_before_it() -> None:
    batch = translated(
        [np.array([5, 6]), np.array([7])],
        [np.array([8, 9, 1]), np.array([3, 1])],
        np.arange(2), pad=0, start=2,
    )  # fmt: skip
    assert batch.inputs["decoder_input_ids"][:, :3].tolist() == [[2, 8, 9], [2, 3, 0]]
    width = batch.inputs["decoder_input_ids"].shape[1]
    assert batch.scored_N is not None
    assert batch.scored_N.tolist() == [0, 1, 2, width, width + 1]
    assert batch.gold_N is not None
    assert batch.gold_N.tolist() == [8, 9, 1, 3, 1]
    assert batch.inputs["attention_mask"][:, :2].tolist() == [[1, 1], [1, 0]]


def test_the_first_token_of_an_answer_is_learnt_and_none_after_its_end() -> None:
    batch = continued(
        [np.array([5, 6, 7, 1]), np.array([9, 8, 1])],
        [np.array([0, 0, 1, 1], bool), np.array([0, 1, 1], bool)],
        np.arange(2), pad=1,
    )  # fmt: skip
    assert batch.gold_N is not None
    assert batch.gold_N.tolist() == [7, 1, 8, 1]
    width = batch.inputs["input_ids"].shape[1]
    assert batch.scored_N is not None
    assert batch.scored_N.tolist() == [1, 2, width, width + 1]


@pytest.mark.parametrize("kind", ["seq2seq", "causal_lm"])
def test_a_batch_has_the_gold_that_its_places_name(kind: Kind, tmp_path: Path) -> None:
    data = written(kind, tmp_path)
    for rows in (np.array([0, 1, 2, 3]), np.array([3, 0]), np.array([2]), np.array([1, 2])):
        batch = data.batch(rows)
        assert batch.gold_N is not None
        assert torch.equal(batch.gold_N, data.gold_N[torch.from_numpy(data.places(rows))])
        assert data.scored_counts(rows).sum() == batch.scored
    assert data.scored_counts(np.array([2])).tolist() == [0]


@pytest.mark.parametrize("kind", ["seq2seq", "causal_lm"])
def test_some_of_the_examples_are_those(kind: Kind, tmp_path: Path) -> None:
    data, rows = written(kind, tmp_path), np.array([3, 0, 2])
    some = data.take(rows)
    assert np.array_equal(some.keys_N2, data.keys_N2[rows])
    assert torch.equal(some.gold_N, data.gold_N[torch.from_numpy(data.places(rows))])
    assert some.answers == ["two birds", "sat", None]
    assert [p.tolist() for p in some.prompts(np.arange(3))] == [
        p.tolist() for p in data.prompts(rows)
    ]


def test_what_parts_keep_is_put_together_in_the_data_s_order(tmp_path: Path) -> None:
    data, parts = written("causal_lm", tmp_path), (np.array([3, 0]), np.array([1, 2]))
    whole_N3 = np.random.default_rng(0).random((len(data.gold_N), 3)).astype(np.float32)
    tokens = [(rows, whole_N3[data.places(rows)]) for rows in parts]
    assert np.array_equal(merged(tokens, data, texts=False), whole_N3)
    facts_E5, greedy, beam = np.arange(20.0).reshape(4, 5), ["a", "", "cc", "d"], list("efgh")
    texts = [
        (rows, kept(facts_E5[rows], [greedy[i] for i in rows], [beam[i] for i in rows]))
        for rows in parts
    ]
    found_E5, both = unkept(merged(texts, data, texts=True))
    assert np.array_equal(found_E5, facts_E5)
    assert both == (greedy, beam)


@pytest.mark.parametrize("kind", ["seq2seq", "causal_lm"])
def test_keys_stand_for_the_tokens(kind: Kind, tmp_path: Path) -> None:
    one, again = written(kind, tmp_path / "a"), written(kind, tmp_path / "b")
    assert np.array_equal(one.keys_N2, again.keys_N2)
    assert len(np.unique(one.keys_N2, axis=0)) == len(PAIRS)


@pytest.mark.parametrize("kind", ["seq2seq", "causal_lm"])
def test_rewritten_with_its_own_text_a_row_is_what_it_was(kind: Kind, tmp_path: Path) -> None:
    data = written(kind, tmp_path)
    rows = np.array([3, 1])
    own = data.batch(rows)
    assert own.gold_N is not None
    texts = [own.gold_N.split(data.scored_counts(rows).tolist())[i].numpy() for i in range(2)]
    found = data.rewritten(rows, texts)
    assert torch.equal(own.gold_N, found.gold_N)  # pyright: ignore
    assert {k: v.tolist() for k, v in found.inputs.items()} == {
        k: v.tolist() for k, v in own.inputs.items()
    }


def test_ranges() -> None:
    starts = np.array([0, 2, 2, 5])
    assert ranges(starts, np.array([2, 0, 1])).tolist() == [2, 3, 4, 0, 1]
    assert ranges(starts, np.array([1])).tolist() == []


def running(folder: Path, *, packed: bool = True) -> tuple[RunningText, Any]:
    made: Any = train_tokenizer(TEXTS, kind="bpe", size=270, task="causal_lm")
    lines = [f"{i} {i * i * 7919} {i * 104729 + 13}" for i in range(60)]
    (folder / "text.txt").write_text("\n".join(lines))
    config = CorpusConfig(path=str(folder / "text.txt"), length=10, packed=packed, held_out=0.1)
    corpus = load_corpus(config, made, folder / "store", max_length=10, causal=True)
    return RunningText(corpus.train, made), made


def test_each_token_of_running_text_is_predicted_once(tmp_path: Path) -> None:
    data, made = running(tmp_path)
    blocks = [data.batch(np.array([row])) for row in range(len(data))]
    ids = [batch.inputs["input_ids"][0][: data.lengths[row]] for row, batch in enumerate(blocks)]
    assert int(ids[0][0]) == made.eos_token_id  # so that the first word is predicted too
    for before, after in pairwise(ids):
        assert before[-1] == after[0]
    text = made.decode(torch.cat([batch.gold_N for batch in blocks]))  # pyright: ignore
    documents = text.split("<|endoftext|>")
    assert len(documents) > 40  # what is left of the stream, fewer than 8 tokens, is dropped
    assert all(each.split()[-1].isdigit() for each in documents[:-1])
    assert torch.equal(torch.cat([batch.gold_N for batch in blocks]), data.gold_N)  # pyright: ignore


def test_documents_by_themselves_begin_anew(tmp_path: Path) -> None:
    data, made = running(tmp_path, packed=False)
    ends = 0
    for row in range(len(data)):
        ids = data.batch(np.array([row])).inputs["input_ids"][0][: data.lengths[row]].tolist()
        ends += ids[-1] == made.eos_token_id
        assert made.eos_token_id not in ids[1:-1]
    assert ends >= 40
