"""Masked blocks are fixed where they are measured, fresh where they train; scores are right.

Axes: N scored rows, K choices, B blocks, T tokens.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from stillhouse.core.config import CorpusConfig, MaskingConfig
from stillhouse.core.errors import DataError, RunError
from stillhouse.core.types import Batch
from stillhouse.data.corpus import Corpus, load_corpus
from stillhouse.numerics import metrics
from stillhouse.tasks.base import Task
from stillhouse.tasks.masked_lm import MaskedBlocks, MaskedLM

LINES = [text for text, _ in tiny.sentences(300)]
LINES = [
    f"{a} {b}" if i % 2 else a for i, (a, b) in enumerate(zip(LINES, LINES[::-1], strict=True))
]
ODD = ["xyzzy the qwerty film", "[MASK] [SEP] the [PAD] room", "<mask> </s> the <pad> room"] * 20


def corpus(
    folder: Path, kind: str = "bert", *, lines: list[str] | None = None, **settings: Any
) -> Corpus:
    """Chunked blocks of many lengths, unknown words and special tokens among them."""
    text = folder / "text"
    text.mkdir(exist_ok=True)
    odd = [f"{a} {b}" for a, b in zip(ODD, LINES[:60], strict=True)]
    (text / "train.txt").write_text("\n".join(lines or [*LINES, *odd]), encoding="utf-8")
    (text / "valid.txt").write_text("\n".join(LINES[:150]), encoding="utf-8")
    given = {"packed": False, "length": 22, "held_out": 0.3, **settings}
    config = CorpusConfig(path=str(text), **given)
    return load_corpus(config, tiny.tokenizer(kind), folder / "store", max_length=64)


def masked(folder: Path, kind: str = "bert", **settings: Any) -> MaskedBlocks:
    config = MaskingConfig(**settings)
    return MaskedBlocks(corpus(folder, kind).train, config, tiny.tokenizer(kind))


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def parts(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What is seen and what is real (B x T), the scored places, the gold."""
    assert batch.gold_N is not None
    assert batch.scored_N is not None
    assert batch.gold_N.dtype == batch.scored_N.dtype == torch.long
    ids, mask = batch.inputs["input_ids"].numpy(), batch.inputs["attention_mask"].numpy()
    return ids, mask.astype(bool), batch.scored_N.numpy(), batch.gold_N.numpy()


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("power", [None, -0.7])
@pytest.mark.parametrize("seed", [None, 0, 1, 2, 3, 4])
def test_text_is_masked_and_nothing_else(
    tmp_path: Path, kind: str, power: float | None, seed: int | None
) -> None:
    found = corpus(tmp_path, kind).train
    settings = MaskingConfig(share=0.5, mask=0.3, random=0.6, frequency_power=power)
    data = MaskedBlocks(found, settings, tiny.tokenizer(kind))
    special, mask_id = list(found.special), tiny.tokenizer(kind).mask_token_id
    for rows in np.array_split(rng(9).permutation(len(data)), 5):
        original_BT = found.inputs(rows)["input_ids"].numpy()
        seen_BT, real_BT, places, gold_N = parts(
            data.batch(rows, None if seed is None else rng(seed))
        )
        assert (original_BT.reshape(-1)[places] == gold_N).all()
        assert not np.isin(gold_N, special).any(), "specials are not guessed"
        assert real_BT.reshape(-1)[places].all(), "nor is padding"
        elsewhere = np.ones(seen_BT.size, bool)
        elsewhere[places] = False
        assert (seen_BT.reshape(-1) == original_BT.reshape(-1))[elsewhere].all()
        put = seen_BT.reshape(-1)[places]
        assert (~np.isin(put, special) | (put == mask_id)).all(), "nor put in a word's place"
        assert (np.diff(places) > 0).all()
        counts = (real_BT & ~np.isin(original_BT, special)).sum(1)
        expected = (
            [round(0.5 * counts.sum())] if seed is not None else [round(0.5 * c) for c in counts]
        )
        assert len(places) == sum(expected)
        assert np.isin(original_BT[real_BT], special).sum() > 2 * len(rows), "there were some"


def test_the_share_is_exact(tmp_path: Path) -> None:
    data, found = masked(tmp_path), corpus(tmp_path).train
    rows = np.arange(len(data))
    ids_BT = found.inputs(rows)["input_ids"].numpy()
    counts = (~np.isin(ids_BT, list(found.special))).sum(1)  # [PAD] is special too
    assert len(parts(data.batch(rows, rng(0)))[2]) == round(0.15 * counts.sum())
    per_block = np.bincount(parts(data.batch(rows))[2] // ids_BT.shape[1], minlength=len(data))
    assert per_block.tolist() == [max(1, round(0.15 * c)) for c in counts]


def test_eight_tenths_of_the_chosen_are_masked(tmp_path: Path) -> None:
    data, rows = masked(tmp_path, share=0.9), np.arange(len(masked(tmp_path)))
    for batch in (data.batch(rows), data.batch(rows, rng(0))):
        seen_BT, _, places, gold_N = parts(batch)
        put = seen_BT.reshape(-1)[places]
        own = 0.1 / len(tiny.WORDS)
        for share, expected in (
            ((put == tiny.tokenizer().mask_token_id).mean(), 0.8),
            ((put == gold_N).mean(), 0.1 + own),
        ):
            assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / len(gold_N))


def test_a_fixed_mask_is_the_blocks_own(tmp_path: Path) -> None:
    """In any batch, padded to any width, from one data set to another."""
    data = masked(tmp_path)
    alone = {}
    for row in range(len(data)):
        seen_BT, real_BT, places, gold_N = parts(data.batch(np.array([row])))
        alone[row] = seen_BT[real_BT].tolist(), places.tolist(), gold_N.tolist()
    few = masked(tmp_path, frequency_power=-0.7)
    widths = set()
    for seed, source in ((1, data), (2, data), (3, few)):
        for rows in np.array_split(rng(seed).permutation(len(data)), 40):
            seen_BT, real_BT, places, gold_N = parts(source.batch(rows))
            widths.add((seen_BT.shape[1], *np.unique(data.lengths[rows])[:1].tolist()))
            at = 0
            for i, row in enumerate(rows.tolist()):
                seen, inside, gold = alone[row]
                count = len(gold)
                assert seen_BT[i][real_BT[i]].tolist() == seen
                assert (places[at : at + count] - i * seen_BT.shape[1]).tolist() == inside
                assert gold_N[at : at + count].tolist() == gold
                at += count
            assert at == len(places)
    assert len({width for width, _ in widths}) > 1, "the padding did differ"
    assert len({tuple(inside) for _, inside, _ in alone.values()}) > len(data) / 3


def test_a_fixed_mask_follows_the_content(tmp_path: Path) -> None:
    one = masked(tmp_path)
    keys = {key.tobytes(): row for row, key in enumerate(one.keys_N2)}
    (tmp_path / "b").mkdir()
    found = corpus(tmp_path / "b", lines=[*LINES[200:], "a room", *LINES[150:190]]).train
    two = MaskedBlocks(found, MaskingConfig(), tiny.tokenizer())
    both = [(row, keys[k.tobytes()]) for row, k in enumerate(two.keys_N2) if k.tobytes() in keys]
    assert len(both) > 20
    assert any(a != b for a, b in both)
    for mine, theirs in both:
        a, b = parts(two.batch(np.array([mine]))), parts(one.batch(np.array([theirs])))
        assert all((x == y).all() for x, y in zip(a, b, strict=True))


def test_a_fresh_mask_follows_the_generator(tmp_path: Path) -> None:
    data, rows = masked(tmp_path), np.arange(20)
    same, again, other = (parts(data.batch(rows, rng(seed))) for seed in (0, 0, 1))
    assert all((a == b).all() for a, b in zip(same, again, strict=True))
    assert (same[2] != other[2]).any()
    fixed = parts(data.batch(rows))
    assert len(fixed[2]) != len(same[2]) or (fixed[2] != same[2]).any()


def test_places_put_any_batchs_rows_where_they_belong(tmp_path: Path) -> None:
    data = masked(tmp_path)
    for seed in range(3):
        whole_N = torch.full_like(data.gold_N, -1)
        for rows in np.array_split(rng(seed).permutation(len(data)), 7):
            gold_N, places = data.batch(rows).gold_N, data.places(rows)
            assert gold_N is not None
            assert torch.equal(gold_N, data.gold_N[torch.from_numpy(places)])
            assert (whole_N[torch.from_numpy(places)] == -1).all()
            whole_N[torch.from_numpy(places)] = gold_N
        assert torch.equal(whole_N, data.gold_N)
    assert data.places(np.arange(len(data))).tolist() == list(range(len(data.gold_N)))
    assert data.places(np.array([], dtype=np.int64)).shape == (0,)


def test_rare_tokens_are_masked_more_often(tmp_path: Path) -> None:
    """Weights are the counts to the power: of these blocks, or those that are given."""
    lines = [f"{a} the the the the the the" for a in LINES]
    found = corpus(tmp_path, lines=lines).train
    counts = found.counts()
    common, tokenizer = tiny.tokenizer().convert_tokens_to_ids("the"), tiny.tokenizer()
    assert counts[common] > 5 * np.delete(counts[5:], common - 5).max()

    def share(power: float | None, given: np.ndarray | None = None) -> float:
        config = MaskingConfig(share=0.01, frequency_power=power)
        data = MaskedBlocks(found, config, tokenizer, counts=given)
        gold = [parts(data.batch(np.arange(64), rng(seed)))[3] for seed in range(150)]
        return float((np.concatenate(gold) == common).mean())

    ids = found.inputs(np.arange(64))["input_ids"].numpy()
    ids = ids[ids >= 5]
    for power, given in ((None, None), (-0.7, None), (-0.7, np.maximum(counts, 300))):
        weights = np.maximum(counts if given is None else given, 1) ** (power or 0.0)
        expected = weights[ids[ids == common]].sum() / weights[ids].sum()
        assert abs(share(power, given) - expected) < 0.035, power
    assert share(-0.7) < share(None) / 2
    with pytest.raises(ValueError, match="counts of 3 ids"):
        share(-0.7, np.ones(3, dtype=np.int64))


def test_blocks_without_text_have_no_scored_rows(tmp_path: Path) -> None:
    lines = ["xyzzy qwerty " * 30, *LINES]
    found = corpus(tmp_path, lines=lines, packed=True, length=16).train
    data = MaskedBlocks(found, MaskingConfig(), tiny.tokenizer())
    for generator in (None, rng(0)):
        batch = data.batch(np.array([0, 1]), generator)
        assert parts(batch)[2].shape == parts(batch)[3].shape == (0,)
        assert (parts(batch)[0][:, 1:-1] == tiny.tokenizer().unk_token_id).all()
    assert len(parts(data.batch(np.array([0, 20, 1])))[2]) > 0
    assert data.places(np.array([0, 1])).shape == (0,)
    assert len(data.gold_N) > len(data)


def test_a_tokenizer_needs_a_mask_token(tmp_path: Path) -> None:
    tokenizer, found = tiny.tokenizer(), corpus(tmp_path).train
    tokenizer.mask_token = None
    with pytest.raises(DataError, match="no mask token") as raised:
        MaskedBlocks(found, MaskingConfig(), tokenizer)
    assert "\n" not in str(raised.value)


def test_what_is_kept_of_scores() -> None:
    task, scores_NK = (
        MaskedLM(tiny.tokenizer()),
        torch.randn(9, 65, generator=torch.Generator().manual_seed(0)),
    )
    gold_N = torch.arange(9) * 7
    reduced_N2 = task.reduce(scores_NK, gold_N)
    assert reduced_N2.dtype == torch.float32
    assert reduced_N2[:, 0].tolist() == scores_NK.argmax(1).tolist()
    slow = torch.nn.functional.cross_entropy(scores_NK.double(), gold_N, reduction="none")
    torch.testing.assert_close(reduced_N2[:, 1].double(), -slow, rtol=0, atol=1e-6)
    half_N2 = task.reduce((scores_NK * 4).bfloat16(), gold_N)
    exact_N = (scores_NK * 4).bfloat16().double().log_softmax(-1)[torch.arange(9), gold_N]
    torch.testing.assert_close(half_N2[:, 1].double(), exact_N, rtol=0, atol=1e-5)


def test_uniform_scores_have_the_vocabularys_perplexity() -> None:
    task, gold_N = MaskedLM(tiny.tokenizer()), torch.arange(60)
    reduced_N2 = task.reduce(torch.full((60, task.width), 3.0), gold_N).numpy()
    assert task.width == 65
    assert task.score(task.predictions(reduced_N2, tiny.answered(gold_N)))[
        "perplexity"
    ] == pytest.approx(65)


def test_accuracy_and_perplexity_by_hand() -> None:
    task, gold_N = MaskedLM(tiny.tokenizer()), torch.tensor([5, 6, 7, 8])
    half, eighth = math.log(0.5), math.log(0.125)
    reduced_N2 = np.array([[5, half], [6, half], [7, eighth], [5, eighth]], np.float32)
    found = task.predictions(reduced_N2, tiny.answered(gold_N))
    assert found.answers_N.tolist() == [5, 6, 7, 5]
    assert found.answers_N.dtype == np.int64
    assert (found.gold_N == gold_N.numpy()).all()
    assert found.probabilities_NK is None
    assert task.score(found) == {"accuracy": 0.75, "perplexity": pytest.approx(4)}
    assert task.metric_of(found.answers_N, found.gold_N, "accuracy") == 0.75
    assert task.metric_of(found.answers_N, found.gold_N, task.metric) == metrics.accuracy(
        found.answers_N, found.gold_N
    )
    assert task.agreement(found.answers_N, np.array([5, 5, 5, 5])) == 0.5
    with pytest.raises(ValueError, match="perplexity"):
        task.metric_of(found.answers_N, found.gold_N, "perplexity")


@pytest.mark.parametrize("logp", [-1e6, -math.inf])
def test_a_hopeless_models_perplexity_is_infinite(logp: float) -> None:
    task, gold_N = MaskedLM(tiny.tokenizer()), torch.tensor([5, 6])
    found = task.predictions(np.array([[5, -1.0], [6, logp]], np.float32), tiny.answered(gold_N))
    assert task.score(found)["perplexity"] == math.inf


def test_scores_that_are_no_numbers_are_refused() -> None:
    task = MaskedLM(tiny.tokenizer())
    scores_NK = torch.zeros(3, task.width)
    scores_NK[1, 4] = math.nan
    gold_N = torch.tensor([5, 6, 7])
    with pytest.raises(RunError, match="not finite in 1 of 3 rows"):
        task.predictions(task.reduce(scores_NK, gold_N).numpy(), tiny.answered(gold_N))
    with pytest.raises(RunError, match="no token of the text"):
        task.predictions(np.empty((0, 2), np.float32), tiny.answered(gold_N[:0]))


def test_it_is_a_task() -> None:
    task = MaskedLM(tiny.tokenizer(), width=80)
    assert isinstance(task, Task)
    assert (task.name, task.metric, task.choices, task.labels) == ("masked_lm", "accuracy", [], [])
    assert task.width == 80
    assert task.show(8.0) == tiny.WORDS[3]
    assert task.show(70) == "id 70"
    gold_N = task.gold(np.array([None, None], dtype=object))
    assert task.has_gold(gold_N).tolist() == [False, False]
    assert task.has_gold(torch.tensor([3])).tolist() == [True]
    with pytest.raises(ValueError, match="at most 16777216 ids"):
        MaskedLM(tiny.tokenizer(), width=2**24 + 1)
