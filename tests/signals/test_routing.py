"""Teachers that divide the examples among them.

Axes: N scored rows, K choices, B examples, T tokens or places of a sparse top, D drawn choices.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from stillhouse.core.errors import ModelError, RunError
from stillhouse.core.types import Batch, Dense, Labels, Sparse
from stillhouse.signals.routing import Gated, Routed, scored_counts
from stillhouse.signals.teacher import LiveTeacher

ROUTES = np.array(["de", "fr", None, "de", "nl", "fr", "de"], dtype=object)


def drawn(seed: int, rows: int = 7, choices: int = 5) -> Tensor:
    return torch.randn(rows, choices, generator=torch.Generator().manual_seed(seed))


class Asked(tiny.Fixed):
    """Notes which examples it was asked for."""

    def __init__(self, scores_NK: Tensor) -> None:
        super().__init__(scores_NK)
        self.rows: list[int] = []

    def signal(self, batch: Batch) -> Dense:
        self.rows += batch.rows.tolist()
        return super().signal(batch)


class Reads:
    """Scores each scored token by its id and where its row begins: a batch cut wrong shows."""

    kind = Dense
    fingerprint = "reads"
    reads_batch = True

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def signal(self, batch: Batch) -> Dense:
        assert batch.scored_N is not None
        ids_BT = batch.inputs["input_ids"]
        first_BT = ids_BT[:, :1].expand_as(ids_BT)
        read = torch.stack([ids_BT.flatten(), first_BT.flatten()], -1)[batch.scored_N]
        return Dense(self.factor * read.float())


def test_each_example_is_answered_by_its_groups_teacher() -> None:
    de, fr = Asked(drawn(1)), Asked(drawn(2))
    rows = np.array([5, 0, 2, 6, 4, 1])  # fr, de, none, de, nl, fr
    found = Routed({"de": de, "fr": fr}, ROUTES).signal(Batch({}, rows))
    assert isinstance(found, Dense)
    assert found.taught_N is not None
    assert found.taught_N.tolist() == [True, True, False, True, False, True]
    for n, source in ((0, fr), (1, de), (3, de), (5, fr)):
        assert torch.equal(found.scores_NK[n], source.scores_NK[rows[n]])
    assert (de.rows, fr.rows) == ([0, 6], [5, 1])


def test_a_batch_of_one_group_is_passed_on() -> None:
    de = Asked(drawn(1))
    found = Routed({"de": de, "fr": Asked(drawn(2))}, ROUTES).signal(Batch({}, np.array([3, 0])))
    assert isinstance(found, Dense)
    assert found.taught_N is None
    assert torch.equal(found.scores_NK, drawn(1)[[3, 0]])


def tokens() -> Batch:
    """Seven examples of four tokens, of which 2, 1, 0, 3, 1, 4, 1 are scored."""
    scored = [[1, 3], [0], [], [0, 1, 2], [3], [0, 1, 2, 3], [2]]
    places = [4 * b + t for b, row in enumerate(scored) for t in row]
    ids_BT = torch.arange(28).view(7, 4) * 3 % 29
    gold_N = ids_BT.flatten()[places] + 100
    inputs = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}
    return Batch(inputs, np.arange(7), gold_N, torch.tensor(places))


def test_scored_rows_are_counted_by_example() -> None:
    assert scored_counts(tokens()).tolist() == [2, 1, 0, 3, 1, 4, 1]
    assert scored_counts(Batch({}, np.arange(3))).tolist() == [1, 1, 1]
    spans = Batch({}, np.arange(3), answerable_BT=torch.ones(3, 5, dtype=torch.bool))
    assert scored_counts(spans).tolist() == [2, 2, 2]
    wide = {"input_ids": torch.zeros(7, 9), "decoder_input_ids": torch.zeros(7, 4)}
    assert scored_counts(replace(tokens(), inputs=wide)).tolist() == [2, 1, 0, 3, 1, 4, 1]


def test_tokens_are_put_back_where_they_were() -> None:
    batch, sources = tokens(), {"de": Reads(1.0), "fr": Reads(-1.0)}
    found = Routed(sources, ROUTES).signal(batch)
    assert isinstance(found, Dense)
    assert found.taught_N is not None
    owner_N = np.repeat(np.arange(7), scored_counts(batch))
    full = {group: source.signal(batch).scores_NK for group, source in sources.items()}
    for n, example in enumerate(owner_N):
        taught = ROUTES[example] in sources
        assert bool(found.taught_N[n]) == taught
        if taught:
            assert torch.equal(found.scores_NK[n], full[ROUTES[example]][n]), n


def test_what_a_teacher_is_asked_has_its_gold_answers() -> None:
    seen: list[Batch] = []

    class Notes(Reads):
        def signal(self, batch: Batch) -> Dense:
            seen.append(batch)
            return super().signal(batch)

    Routed({"fr": Notes(1.0)}, ROUTES).signal(tokens())
    (asked,) = seen
    assert asked.rows.tolist() == [1, 5]
    assert asked.scored_N is not None
    assert asked.gold_N is not None
    assert asked.scored_N.tolist() == [0, 4, 5, 6, 7]
    ids_N = asked.inputs["input_ids"].flatten()[asked.scored_N]
    assert torch.equal(asked.gold_N, ids_N + 100)


def test_live_teachers_of_tokens_answer_as_they_do_alone() -> None:
    texts = [text for text, _ in tiny.sentences(7)]
    inputs = dict(tiny.tokenizer()(texts, padding=True, return_tensors="pt"))
    width = inputs["input_ids"].shape[1]
    scored_N = (torch.arange(7)[:, None] * width + torch.tensor([1, 2])).flatten()
    batch = Batch(inputs, np.arange(7), scored_N=scored_N)
    teachers = {
        group: LiveTeacher(
            tiny.model(masked=True, seed=seed), None, fingerprint=group, precision="float32"
        )
        for seed, group in enumerate(("de", "fr"))
    }
    found = Routed(teachers, ROUTES).signal(batch)
    assert isinstance(found, Dense)
    assert not found.scores_NK.requires_grad
    for group, teacher in teachers.items():
        alone = teacher.signal(batch)
        assert isinstance(alone, Dense)
        inside_N = torch.from_numpy(np.repeat(group == ROUTES, 2))
        torch.testing.assert_close(found.scores_NK[inside_N], alone.scores_NK[inside_N])


def sparse(rows: int, top: int, **changes: Any) -> Sparse:
    p_NK = drawn(top, rows, 9).softmax(-1)
    top_p_NT, top_ids_NT = p_NK.topk(top)
    ids_ND = p_NK.argsort()[:, :2]
    return Sparse(
        top_ids_NT, top_p_NT, 1 - top_p_NT.sum(-1), ids_ND, **{"estimator": "sampled", **changes}
    )


class Kept:
    """Answers from a cache of sparse distributions."""

    kind = Sparse
    fingerprint = "kept"

    def __init__(self, all_: Sparse) -> None:
        self._all = all_

    def signal(self, batch: Batch) -> Sparse:
        return self._all.part(batch.rows)  # pyright: ignore


def test_sparse_answers_are_put_back_too() -> None:
    de, fr = sparse(7, 2), sparse(7, 4)
    found = Routed({"de": Kept(de), "fr": Kept(fr)}, ROUTES).signal(Batch({}, np.arange(7)))
    assert isinstance(found, Sparse)
    assert found.taught_N is not None
    assert (found.estimator, found.top_p_NT.shape) == ("sampled", (7, 4))
    torch.testing.assert_close(found.top_p_NT.sum(-1) + found.tail_N, torch.ones(7))
    for n, group in enumerate(ROUTES):
        assert bool(found.taught_N[n]) == (group in ("de", "fr"))
        if group == "fr":
            assert torch.equal(found.top_p_NT[n], fr.top_p_NT[n])
            assert torch.equal(found.drawn_ids_ND[n], fr.drawn_ids_ND[n])
        if group == "de":
            assert torch.equal(found.top_ids_NT[n, :2], de.top_ids_NT[n])
            assert found.top_p_NT[n, 2:].tolist() == [0, 0]
            assert found.tail_N[n] == de.tail_N[n]
        if group == "nl":  # renormalised it is still a distribution
            assert found.top_p_NT[n].sum() == 1
            assert found.tail_N[n] == 0


def test_labels_are_put_back_too() -> None:
    class Says:
        kind = Labels
        fingerprint = "says"

        def signal(self, batch: Batch) -> Labels:
            return Labels(torch.from_numpy(batch.rows) + 10)

    found = Routed({"de": Says(), "fr": Says()}, ROUTES).signal(Batch({}, np.array([4, 1, 0])))
    assert isinstance(found, Labels)
    assert found.taught_N is not None
    assert found.taught_N.tolist() == [False, True, True]
    assert found.labels_N.tolist() == [0, 11, 10]


def test_teachers_that_do_not_fit_are_refused_in_one_line() -> None:
    batch = Batch({}, np.arange(7))

    class Short(tiny.Fixed):
        def signal(self, batch: Batch) -> Dense:
            return Dense(self.scores_NK[:1])

    wide, de = tiny.Fixed(drawn(2, 7, 6)), tiny.Fixed(drawn(1))
    other = Kept(sparse(7, 2, temperature=2.0))
    for sources, width, message in (
        ({"de": de, "fr": wide}, None, "scores 6 choices and not 5"),
        ({"de": de}, 6, "scores 5 choices and not 6"),
        ({"de": Short(drawn(1))}, None, "the 3 rows it was asked for"),
        ({"de": Kept(sparse(7, 2)), "fr": other}, None, "kept in two ways"),
    ):
        with pytest.raises(ModelError, match=message) as caught:
            Routed(sources, ROUTES, width=width).signal(batch)
        assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="Dense, Sparse"):
        Routed({"de": de, "fr": other}, ROUTES)
    with pytest.raises(RunError, match="scored rows were counted"):
        Routed({"de": de}, ROUTES, counts=lambda batch: np.ones(7, int) * 2).signal(batch)


def test_no_teacher_gets_a_gradient() -> None:
    weight = drawn(1).requires_grad_()

    class Learning(tiny.Fixed):
        def signal(self, batch: Batch) -> Dense:
            return Dense(weight[torch.from_numpy(batch.rows)])

    routed = Routed({"de": Learning(weight), "fr": Learning(weight)}, ROUTES)
    for source in (routed, Gated(routed, {"fr": False}, ROUTES)):
        for rows in (np.arange(7), np.array([0, 3])):  # of two teachers, and of one
            found = source.signal(Batch({}, rows))
            assert isinstance(found, Dense)
            assert not found.scores_NK.requires_grad


def test_a_batch_without_a_teacher_teaches_nothing() -> None:
    rows = Batch({}, np.array([2, 4]))
    found = Routed({"de": tiny.Fixed(drawn(1))}, ROUTES, width=5).signal(rows)
    assert isinstance(found, Dense)
    assert found.taught_N is not None
    assert not found.taught_N.any()
    assert found.scores_NK.shape == (2, 5)
    with pytest.raises(RunError, match="how many choices"):
        Routed({"de": tiny.Fixed(drawn(1))}, ROUTES).signal(rows)


def test_a_teacher_that_is_switched_off_is_not_asked() -> None:
    de, fr = Asked(drawn(1)), Asked(drawn(2))
    gate = {"de": True, "fr": False}
    source = Gated(Routed({"de": de, "fr": fr}, ROUTES), gate, ROUTES, width=5)
    batch = Batch({}, np.array([5, 0, 1, 6]))
    found = source.signal(batch)
    assert isinstance(found, Dense)
    assert found.taught_N is not None
    assert found.taught_N.tolist() == [False, True, False, True]
    assert torch.equal(found.scores_NK[[1, 3]], drawn(1)[[0, 6]])
    assert (de.rows, fr.rows) == ([0, 6], [])
    gate.update(de=False, fr=True)
    found = source.signal(batch)
    assert isinstance(found, Dense)
    assert found.taught_N is not None
    assert found.taught_N.tolist() == [True, False, True, False]
    gate.update(fr=False)
    found = source.signal(batch)
    assert isinstance(found, Dense)
    assert found.taught_N is not None
    assert not found.taught_N.any()
    assert (de.rows, fr.rows) == ([0, 6], [5, 1])


def test_an_open_gate_changes_nothing() -> None:
    teachers = Routed({"de": tiny.Fixed(drawn(1)), "fr": tiny.Fixed(drawn(2))}, ROUTES)
    for gate in ({}, {"de": True, "fr": True}):
        mine, theirs = (
            s.signal(Batch({}, np.arange(7))) for s in (Gated(teachers, gate, ROUTES), teachers)
        )
        assert isinstance(mine, Dense)
        assert isinstance(theirs, Dense)
        assert torch.equal(mine.scores_NK, theirs.scores_NK)
        assert mine.taught_N is not None
        assert theirs.taught_N is not None
        assert torch.equal(mine.taught_N, theirs.taught_N)


def test_a_weight_is_the_chance_to_be_taught() -> None:
    class Half:
        def weight(self, group: str) -> float:
            return {"a": 0.3, "b": 1.0, "c": 0.0}[group]

    routes = np.array(["a", "b", "c"] * 2000, dtype=object)
    source = Gated(tiny.Fixed(drawn(1, 6000)), Half(), routes)
    batch = Batch({}, np.arange(6000))
    found = source.signal(batch)
    assert isinstance(found, Dense)
    assert found.taught_N is not None
    taught = found.taught_N.view(2000, 3).float().mean(0).tolist()
    assert taught[1:] == [1.0, 0.0]
    assert taught[0] == pytest.approx(0.3, abs=4 * 0.0102)
    again = source.signal(batch)
    assert isinstance(again, Dense)
    assert again.taught_N is not None
    assert torch.equal(again.taught_N, found.taught_N)
    there = source.signal(Batch({}, np.arange(6000)[::-1].copy()))
    assert isinstance(there, Dense)
    assert there.taught_N is not None
    assert not torch.equal(there.taught_N.flip(0), found.taught_N)
