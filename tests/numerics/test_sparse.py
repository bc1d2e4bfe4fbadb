"""What is taken of a distribution stands for all of it, and what is lost against it is exact.

Axes: N rows, K choices, T likeliest choices, D drawn ones, U uniform numbers.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.numerics import sparse
from stillhouse.numerics.divergences import DIVERGENCES
from stillhouse.numerics.sparse import choose, classes, divergence

SETTINGS: dict[str, dict[str, float]] = {
    "forward_kl": {},
    "reverse_kl": {},
    "jsd": {"beta": 0.3},
    "skew_kl": {"alpha": 0.1},
    "total_variation": {},
}


def scores(N: int, K: int, seed: int = 0, wide: torch.dtype = torch.float64) -> Tensor:
    return (3 * torch.randn(N, K, generator=torch.Generator().manual_seed(seed))).to(wide)


def taken(teacher_NK: Tensor, *, top: int, drawn: int = 0, seed: int = 0, U: int = 1) -> Any:
    draw = torch.Generator().manual_seed(seed)
    uniform_NU = torch.rand(len(teacher_NK), U, generator=draw)
    return choose(teacher_NK.log_softmax(-1), uniform_NU, top=top, drawn=drawn)


def estimate(chosen: Any, K: int) -> Tensor:
    """The distributions that are stood for, N x K, float64."""
    ids_NT, p_NT, tail_N, drawn_ND = chosen
    p_NK = torch.zeros(len(tail_N), K, dtype=torch.float64).scatter_add(-1, ids_NT, p_NT.double())
    if not (D := drawn_ND.shape[1]):
        return p_NK
    return p_NK.scatter_add(-1, drawn_ND, (tail_N.double()[:, None] / D).expand(-1, D))


# What is taken


def test_a_row_worked_by_hand() -> None:
    logp_NK = torch.tensor([[0.1, 0.4, 0.2, 0.25, 0.05]]).log()
    ids, p, tail, drawn = choose(logp_NK, torch.tensor([[0.5]]), top=2, drawn=4)
    assert ids.tolist() == [[1, 3]]
    torch.testing.assert_close(p, torch.tensor([[0.4, 0.25]]))
    torch.testing.assert_close(tail, torch.tensor([0.35]))
    # The rest ends at 0.1 (of 0), 0.3 (of 2) and 0.35 (of 4); points at 0.044 0.131 0.219 0.306.
    assert drawn.tolist() == [[0, 2, 2, 4]]


@pytest.mark.parametrize(("top", "drawn"), [(0, 7), (3, 5), (12, 0), (300, 0), (1, 40)])
def test_all_of_it_adds_up_to_1(top: int, drawn: int) -> None:
    chosen = taken(scores(20, 300), top=top, drawn=drawn)
    ids_NT, p_NT, tail_N, drawn_ND = chosen
    torch.testing.assert_close(p_NT.double().sum(-1) + tail_N, torch.ones(20).double())
    assert (p_NT.diff(dim=-1) <= 0).all()
    assert (drawn_ND.diff(dim=-1) >= 0).all()
    if drawn:
        torch.testing.assert_close(estimate(chosen, 300).sum(-1), torch.ones(20).double())
        assert not (ids_NT[:, :, None] == drawn_ND[:, None, :]).any(), "drawn from the rest only"


@pytest.mark.parametrize(("method", "drawn"), [("systematic", 9), ("independent", 9)])
def test_in_expectation_it_is_the_distribution(method: str, drawn: int) -> None:
    """Over a grid of uniform numbers, whose mean is nearly the integral."""
    logp_NK = scores(1, 300).log_softmax(-1)
    grid_G1 = (torch.arange(8192)[:, None] + 0.5) / 8192
    U = 1 if method == "systematic" else drawn
    chosen = choose(logp_NK.expand(8192, -1), grid_G1.expand(-1, U), top=2, drawn=drawn)
    mean_K = estimate(chosen, 300).mean(0)
    torch.testing.assert_close(mean_K, logp_NK[0].exp(), atol=2e-4, rtol=0)


def test_systematic_draws_are_as_many_as_their_share_up_to_one() -> None:
    teacher_NK = scores(30, 300)
    _, _, tail_N, drawn_ND = chosen = taken(teacher_NK, top=2, drawn=40)
    p_NK = teacher_NK.softmax(-1).scatter(-1, chosen[0], 0.0)
    expected_NK = 40 * p_NK / tail_N.double()[:, None]
    found_NK = torch.zeros(30, 300).scatter_add(-1, drawn_ND, torch.ones(30, 40))
    assert (found_NK >= (expected_NK - 1e-4).floor()).all()
    assert (found_NK <= (expected_NK + 1e-4).ceil()).all()


@pytest.mark.parametrize("U", [1, 6])
def test_draws_are_those_of_a_plain_running_sum(U: int) -> None:
    teacher_NK, draw = scores(15, 1000), torch.Generator().manual_seed(0)
    uniform_NU = torch.rand(15, U, generator=draw)
    ids_NT, _, _, drawn_ND = choose(teacher_NK.log_softmax(-1), uniform_NU, top=3, drawn=6)
    for n in range(15):
        rest = teacher_NK[n].softmax(-1)
        rest[ids_NT[n]] = 0.0
        sums, found = rest.cumsum(0), []
        for d in range(6):
            u = float(uniform_NU[n, d if U > 1 else 0])
            point = (u if U > 1 else (d + u) / 6) * float(sums[-1])
            found.append(next(k for k in range(1000) if sums[k] > point))
        assert sorted(found) == drawn_ND[n].tolist()


def test_a_row_gets_the_same_in_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    logp_NK, uniform_N1 = scores(9, 300).log_softmax(-1), torch.rand(9, 1)
    whole = choose(logp_NK, uniform_N1, top=4, drawn=5)
    monkeypatch.setattr(sparse, "CHUNK", 700)  # two rows at once
    parts = choose(logp_NK, uniform_N1, top=4, drawn=5)
    alone = choose(logp_NK[6:7], uniform_N1[6:7], top=4, drawn=5)
    for a, b, c in zip(whole, parts, alone, strict=True):
        assert a.equal(b)
        assert a[6:7].equal(c)


@pytest.mark.parametrize("at", [0.0, 1 - 2**-24, 1 - 2**-53])
def test_no_choice_without_a_share_is_drawn(at: float) -> None:
    """At the first and the last of the numbers, with impossible choices at both ends."""
    scores_NK = scores(40, 300).index_fill(-1, torch.tensor([0, 1, 298, 299]), -math.inf)
    uniform_N1 = torch.full((40, 1), at, dtype=torch.float64)
    ids_NT, _, _, drawn_ND = choose(scores_NK.log_softmax(-1), uniform_N1, top=3, drawn=7)
    assert ((drawn_ND > 1) & (drawn_ND < 298)).all()
    assert not (ids_NT[:, :, None] == drawn_ND[:, None, :]).any()


@pytest.mark.parametrize(("top", "drawn", "U"), [(0, 0, 1), (6, 0, 1), (-1, 3, 1), (1, 3, 2)])
def test_numbers_that_make_no_sense_are_refused(top: int, drawn: int, U: int) -> None:
    with pytest.raises(ValueError, match="got"):
        choose(scores(2, 5).log_softmax(-1), torch.rand(2, U), top=top, drawn=drawn)


# What is lost against it


def lost(name: str, student_NK: Tensor, chosen: Any, estimator: str, T: float = 1.0) -> Tensor:
    settings = SETTINGS[name]
    return divergence(name, student_NK, *chosen, estimator=estimator, temperature=T, **settings)


def slope(loss_N: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss_N.sum(), of)[0]


def test_tail_worked_by_hand() -> None:
    """The student's likeliest has 1/4 and the rest 3/4, the teacher's 1/2 and 1/2."""
    none = torch.zeros(1, 0, dtype=torch.long)
    chosen = (torch.tensor([[2]]), torch.tensor([[0.5]]), torch.tensor([0.5]), none)
    found = lost("forward_kl", torch.zeros(1, 4), chosen, "tail")
    assert found.item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-6)


def test_sampled_worked_by_hand() -> None:
    """p_hat is 1/2 for choice 2, 3/8 for choice 0, drawn three times, and 1/8 for choice 3."""
    drawn = torch.tensor([[0, 3, 0, 0]])
    chosen = (torch.tensor([[2]]), torch.tensor([[0.5]]), torch.tensor([0.5]), drawn)
    found = lost("forward_kl", torch.zeros(1, 4), chosen, "sampled")
    by_hand = sum(p * math.log(4 * p) for p in (0.5, 0.375, 0.125))
    assert found.item() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("T", [1.0, 2.5])
def test_at_equality_there_is_nothing(name: str, T: float) -> None:
    student_NK = scores(12, 40).requires_grad_()
    chosen = taken(student_NK.detach() / T, top=5)
    loss_N = lost(name, student_NK, chosen, "tail", T)
    assert (loss_N >= 0).all()
    assert loss_N.max() < (1e-7 if name == "total_variation" else 1e-12)  # top_p is float32
    assert (
        slope(loss_N.square() if name == "total_variation" else loss_N, student_NK).abs().max()
        < 1e-7
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_tail_is_at_most_the_dense_value_and_meets_it(name: str) -> None:
    student_NK, teacher_NK = scores(30, 12, 1), scores(30, 12, 2)
    dense_N = DIVERGENCES[name](student_NK, teacher_NK, **SETTINGS[name])
    before_N = torch.zeros(30)
    for top in (1, 3, 6, 11):
        loss_N = lost(name, student_NK, taken(teacher_NK, top=top), "tail")
        assert (loss_N >= before_N - 1e-6).all(), "more classes tell more"
        assert (loss_N <= dense_N + 1e-6).all()
        before_N = loss_N
    for top in (11, 12):  # the rest is one choice, or none
        loss_N = lost(name, student_NK, taken(teacher_NK, top=top), "tail")
        torch.testing.assert_close(loss_N, dense_N, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("wide", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("estimator", ["tail", "sampled"])
def test_no_value_is_below_0(wide: torch.dtype, estimator: str) -> None:
    """Nearly equal, where rounding would tell."""
    teacher_NK = scores(400, 60, wide=torch.float32)
    student_NK = (teacher_NK + 1e-4 * scores(400, 60, 1, torch.float32)).to(wide).requires_grad_()
    loss_N = lost("forward_kl", student_NK, taken(teacher_NK, top=8, drawn=6), estimator)
    assert loss_N.dtype == torch.float32
    assert (loss_N >= 0).all()
    assert slope(loss_N, student_NK).dtype == wide


def test_with_every_choice_named_the_gradient_is_the_dense_one() -> None:
    """There are no others, whose class is -inf on both sides."""
    student_NK, teacher_NK = scores(8, 12, 1).requires_grad_(), scores(8, 12)
    loss_N = lost("forward_kl", student_NK, taken(teacher_NK, top=12), "tail")
    dense_NK = (student_NK.softmax(-1) - teacher_NK.softmax(-1)).detach()
    torch.testing.assert_close(slope(loss_N, student_NK), dense_NK, atol=1e-6, rtol=0)


def slow_classes(student_NK: Tensor, ids_NC: Tensor, used_NC: Tensor, T: float) -> Tensor:
    rows = []
    for z_K, ids_C, used_C in zip(student_NK / T, ids_NC.tolist(), used_NC.tolist(), strict=True):
        named = [
            z_K[i] if used else z_K.new_tensor(-math.inf)
            for i, used in zip(ids_C, used_C, strict=True)
        ]
        taken_ids = {i for i, used in zip(ids_C, used_C, strict=True) if used}
        rest = torch.stack([z_K[k] for k in range(len(z_K)) if k not in taken_ids])
        rows.append(torch.stack([*named, rest.logsumexp(0)]))
    return torch.stack(rows)


def test_classes_and_their_gradient_are_a_plain_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unused names repeat used ones and others."""
    student_NK = scores(7, 20).requires_grad_()
    ids_NC = torch.stack(
        [torch.randperm(20, generator=torch.Generator().manual_seed(i))[:5] for i in range(7)]
    )
    ids_NC[:, 4] = ids_NC[:, 0]
    used_NC = torch.tensor([True, True, True, False, False]).repeat(7, 1)
    used_NC[3] = False
    weight_NC = scores(7, 6, 5)
    expected_NC = slow_classes(student_NK, ids_NC, used_NC, 1.7)
    finite_NC = torch.isfinite(expected_NC)
    expected = slope((expected_NC * weight_NC)[finite_NC], student_NK)
    for chunk in (1 << 22, 45):
        monkeypatch.setattr(sparse, "CHUNK", chunk)
        found_NC = classes(student_NK, ids_NC, used_NC, 1.7)
        torch.testing.assert_close(found_NC, expected_NC)
        torch.testing.assert_close(slope((found_NC * weight_NC)[finite_NC], student_NK), expected)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_gradient_is_the_values(name: str) -> None:
    student_NK = scores(3, 9, 1).requires_grad_()
    chosen = [x.double() if x.is_floating_point() else x for x in taken(scores(3, 9), top=4)]
    chosen[1][1, 3] = 0.0  # a place that is not used, whose id is another's
    chosen[0][1, 3] = chosen[0][1, 0]
    assert torch.autograd.gradcheck(lambda z: lost(name, z, chosen, "tail", 1.3), student_NK)


@pytest.mark.parametrize("T", [1.0, 2.0])
def test_sampled_gradient_is_student_minus_estimate(T: float) -> None:
    student_NK, teacher_NK = scores(25, 50, 1).requires_grad_(), scores(25, 50)
    chosen = taken(teacher_NK, top=3, drawn=8)
    loss_N = lost("forward_kl", student_NK, chosen, "sampled", T)
    expected_NK = ((student_NK / T).softmax(-1) - estimate(chosen, 50)) / T
    torch.testing.assert_close(slope(loss_N, student_NK), expected_NK.detach(), atol=1e-7, rtol=0)


def test_sampled_gradient_is_in_expectation_the_dense_one() -> None:
    student_NK, teacher_1K = (
        scores(1, 50, 1).expand(4096, -1).clone().requires_grad_(),
        scores(1, 50),
    )
    grid_G1 = (torch.arange(4096)[:, None] + 0.5) / 4096
    for top in (0, 3):
        chosen = choose(teacher_1K.log_softmax(-1).expand(4096, -1), grid_G1, top=top, drawn=6)
        mean_K = slope(lost("forward_kl", student_NK, chosen, "sampled"), student_NK).mean(0)
        dense_K = student_NK.detach()[0].softmax(-1) - teacher_1K[0].softmax(-1)
        torch.testing.assert_close(mean_K, dense_K, atol=2e-4, rtol=0)


def test_renormalised_leaves_the_rest_out() -> None:
    student_NK, teacher_NK = scores(25, 50, 1).requires_grad_(), scores(25, 50)
    chosen = taken(teacher_NK, top=3, drawn=8)
    loss_N = lost("forward_kl", student_NK, chosen, "renormalised")
    none = (chosen[0], chosen[1], chosen[2], chosen[3][:, :0])
    p_NK = estimate(none, 50) / chosen[1].double().sum(-1, keepdim=True)
    expected_NK = student_NK.softmax(-1) - p_NK
    torch.testing.assert_close(slope(loss_N, student_NK), expected_NK.detach(), atol=1e-7, rtol=0)


def test_a_padded_vocabulary_changes_nothing() -> None:
    student_NK, teacher_NK = scores(9, 20, 1), scores(9, 20)
    padded_NK = torch.nn.functional.pad(student_NK, (0, 3), value=-math.inf).requires_grad_()
    for estimator in ("tail", "sampled"):
        chosen = taken(teacher_NK, top=4, drawn=3)
        loss_N = lost("forward_kl", padded_NK, chosen, estimator)
        torch.testing.assert_close(loss_N, lost("forward_kl", student_NK, chosen, estimator))
        assert (slope(loss_N, padded_NK)[:, 20:] == 0).all()


@pytest.mark.parametrize(
    ("name", "estimator", "top", "drawn", "says"),
    [
        ("logit_mse", "tail", 3, 2, "compares scores"),
        ("decoupled", "tail", 3, 2, "among all other choices"),
        ("reverse_kl", "sampled", 3, 2, "forward_kl only"),
        ("jsd", "renormalised", 3, 2, "forward_kl only"),
        ("forward_kl", "sampled", 3, 0, "needs drawn choices"),
        ("forward_kl", "tail", 0, 3, "needs the likeliest"),
        ("forward_kl", "tails", 3, 2, "known: tail, sampled"),
        ("forward_lk", "tail", 3, 2, "known: decoupled, forward_kl"),
    ],
)
def test_what_can_not_be_had_is_told(
    name: str, estimator: str, top: int, drawn: int, says: str
) -> None:
    chosen = taken(scores(2, 9), top=top, drawn=drawn)
    with pytest.raises(ValueError, match=says):
        divergence(name, scores(2, 9), *chosen, estimator=estimator, temperature=1.0)
