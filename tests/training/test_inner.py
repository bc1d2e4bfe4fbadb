"""Inner terms: which layers are paired, what is projected, and that padding never counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tiny
from stillhouse.core.terms import InnerTermConfig
from stillhouse.core.types import Batch, Dense, States, StudentOutput, Tap
from stillhouse.models.taps import geometry
from stillhouse.numerics import matching as m
from stillhouse.training.inner import Inside
from stillhouse.training.objective import Objective, build

B, T, H = 3, 6, 32
KINDS = ("hint", "patience", "embedding", "hidden", "attention", "attention_kl", "relations",
         "cosine", "gram")  # fmt: skip


def objective(student: Any, teacher: Any, *terms: dict[str, Any]) -> Objective:
    configs = [InnerTermConfig(**term) for term in terms]
    inside = Inside(geometry(student), geometry(teacher))
    made = build(configs, choices=2, signal=Dense, has_gold=True, inside=inside)
    made.reset(0)
    return made


def states(taps: frozenset[Tap], width: int, heads: int, seed: int, *, pad: int = 0) -> States:
    """Random states; `pad` more tokens that are padding, full of nan."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for tap in sorted(taps):
        shape = {"hidden": (B, T, width), "scores": (B, heads, T, T)}.get(
            tap.what, (B, heads, T, width // heads)
        )
        x = torch.randn(shape, generator=draw)
        axes = {"hidden": (0, 0, 0, pad), "scores": (0, pad, 0, pad)}.get(tap.what, (0, 0, 0, pad))
        found[tap] = torch.nn.functional.pad(x, axes, value=float("nan")).requires_grad_(True)
    mask_BT = torch.ones(B, T + pad, dtype=torch.bool)
    mask_BT[:, T:] = False
    return States(found, mask_BT)


def loss(made: Objective, mine: States, theirs: States) -> torch.Tensor:
    output = StudentOutput(torch.zeros(B, 2), mine)
    batch = Batch({}, np.arange(B))
    return torch.stack([term(output, theirs, batch, 0.0).sum for term in made.terms])


@pytest.mark.parametrize("kind", KINDS)
def test_a_term_reads_what_it_compares_and_nothing_else(kind: str) -> None:
    student, teacher = tiny.model(layers=2), tiny.model(layers=4)
    made = objective(student, teacher, {"kind": kind})
    pairs = {
        "hint": ({1}, {2}),
        "patience": ({1}, {2}),
        "embedding": ({0}, {0}),
        "hidden": ({1, 2}, {2, 4}),
        "attention": ({1, 2}, {2, 4}),
        "gram": ({1, 2}, {2, 4}),
    }.get(kind, ({2}, {4}))
    for taps, layers in zip((made.student_taps, made.teacher_taps), pairs, strict=True):
        assert {tap.layer for tap in taps} == layers
    assert not made.scores_student
    assert not made.scores_teacher
    assert made.needs_teacher


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_neither_value_nor_gradient(kind: str) -> None:
    model = tiny.model(layers=2)
    made = objective(model, model, {"kind": kind})
    found = []
    for pad in (0, 5):
        mine = states(made.student_taps, H, 2, 1, pad=pad)
        theirs = states(made.teacher_taps, H, 2, 2, pad=pad)
        value = loss(made, mine, theirs).sum()
        value.backward()
        grads = [mine[tap].grad for tap in sorted(made.student_taps)]
        assert all(g is not None and torch.isfinite(g).all() for g in grads)
        cut = [g[..., :T, :T] if tap.what == "scores" else g[..., :T, :]
               for tap, g in zip(sorted(made.student_taps), grads, strict=True)]  # fmt: skip
        found.append((value.detach(), cut))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "hint"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(kind: str) -> None:
    model = tiny.model(layers=2)
    layers = {} if kind == "embedding" else {"layers": "final"}
    made = objective(model, model, {"kind": kind, **layers})
    mine = states(made.student_taps, H, 2, 1)
    value = loss(made, mine, States({t: x.detach() for t, x in mine.found.items()}, mine.mask_BT))
    assert float(value.detach().abs().max()) < 1e-6
    value.sum().backward()
    for tap in made.student_taps:
        gradient = mine[tap].grad
        assert gradient is not None
        assert float(gradient.abs().max()) < 1e-6


def test_layers_add_up_and_patience_has_both_reductions() -> None:
    student, teacher = tiny.model(layers=3), tiny.model(layers=6)
    both = objective(student, teacher, {"kind": "hidden"})
    mine, theirs = states(both.student_taps, H, 2, 1), states(both.teacher_taps, H, 2, 2)
    by_hand = sum(
        m.hidden_mse(mine[Tap("hidden", s)], theirs[Tap("hidden", t)], None).sum()
        for s, t in ((1, 2), (2, 4), (3, 6))
    )
    torch.testing.assert_close(loss(both, mine, theirs).sum(), by_hand)
    paper = objective(student, teacher, {"kind": "patience"})
    code = objective(student, teacher, {"kind": "patience", "variant": "reference"})
    mine, theirs = states(paper.student_taps, H, 2, 1), states(paper.teacher_taps, H, 2, 2)
    ratio = loss(paper, mine, theirs).sum() / loss(code, mine, theirs).sum()
    assert float(ratio.detach()) == pytest.approx(2 * H), (
        "two layers of width H: mse_loss divides by both"
    )


def test_widths_are_bridged_by_a_projection_that_learns() -> None:
    student, teacher = tiny.model(layers=2, hidden=16), tiny.model(layers=2)
    for kind in ("hidden", "patience", "embedding", "cosine", "hint"):
        layers = {} if kind in ("embedding", "hint") else {"layers": "final"}
        made = objective(student, teacher, {"kind": kind, **layers})
        (bridge,) = made.bridges.values()
        assert bridge.weight.shape == (H, 16)  # pyright: ignore
        mine, theirs = states(made.student_taps, 16, 2, 1), states(made.teacher_taps, H, 2, 2)
        loss(made, mine, theirs).sum().backward()
        assert bridge.weight.grad.abs().sum() > 0  # pyright: ignore


def test_papers_and_codes_projections() -> None:
    """TinyBERT's paper has W_e and W_h, without bias; its code one with a bias for all of them."""
    student, teacher = tiny.model(layers=2, hidden=16), tiny.model(layers=2)
    both = ({"kind": "embedding"}, {"kind": "hidden"})
    paper = objective(student, teacher, *both)
    assert [b.bias is None for b in paper.bridges.values()] == [True, True]
    code = objective(student, teacher, *({**term, "variant": "reference"} for term in both))
    assert len(code.bridges) == 1
    assert code.bridges["embedding"].bias is not None
    same = objective(teacher, teacher, *({**term, "variant": "reference"} for term in both))
    assert len(same.bridges) == 1, "their code projects equal widths too"
    assert not list(objective(teacher, teacher, *both).bridges)


def test_projections_begin_as_the_seed_says() -> None:
    student, teacher = tiny.model(layers=2, hidden=16), tiny.model(layers=2)
    made = objective(student, teacher, {"kind": "hidden"})
    first = made.bridges["hidden"].weight.detach().clone()  # pyright: ignore
    made.reset(1)
    assert not torch.equal(made.bridges["hidden"].weight, first)  # pyright: ignore
    made.reset(0)
    assert torch.equal(made.bridges["hidden"].weight, first)  # pyright: ignore


def test_relations_take_any_number_of_heads_on_either_side() -> None:
    student = tiny.model(layers=2, hidden=16, num_attention_heads=4)
    teacher = tiny.model(layers=2)
    made = objective(student, teacher, {"kind": "relations", "heads": 8})
    assert {tap.what for tap in made.student_taps} == {"queries", "keys", "values"}
    mine, theirs = states(made.student_taps, 16, 4, 1), states(made.teacher_taps, H, 2, 2)
    by_hand = sum(
        m.relation_kl(
            m.split_heads(mine[Tap(what, 2)], 8), m.split_heads(theirs[Tap(what, 2)], 8), None
        ).sum()
        for what in ("queries", "keys", "values")
    )
    torch.testing.assert_close(loss(made, mine, theirs).sum(), by_hand)


def test_a_projection_begins_alike_whatever_other_terms_there_are() -> None:
    student, teacher = tiny.model(layers=2, hidden=16), tiny.model(layers=2)
    alone = objective(student, teacher, {"kind": "hidden"})
    beside = objective(student, teacher, {"kind": "embedding"}, {"kind": "hidden"})
    mine, same, other = (
        made.bridges[name].weight  # pyright: ignore
        for made, name in ((alone, "hidden"), (beside, "hidden"), (beside, "embedding"))
    )
    assert torch.equal(mine, same)
    assert not torch.equal(mine, other)
