"""The probe measures what the estimators do, and chooses the nearer one.

Axes: N scored rows, K choices, H hidden, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.core.head import Factored, Head
from stillhouse.core.types import Sparse
from stillhouse.numerics.sparse import choose
from stillhouse.signals.probe import Probe, Quality, _Sums, choose_estimator, measure

V, H = 60, 6


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair(N: int = 64, far: float = 1.0, **head: Any) -> tuple[Tensor, Factored]:
    """A teacher's scores, and a student whose weights are off by `far`."""
    hidden_NH, weight_VH = noise(N, H), noise(V, H, seed=1)
    bias_V = -2 * torch.arange(1.0, V + 1).log()
    student = Head(weight_VH + far * noise(V, H, seed=2), bias_V, **head)
    return Head(weight_VH, bias_V)(hidden_NH), Factored(hidden_NH, student)


def kept(teacher_NK: Tensor, top: int, drawn: int, seed: int = 0, T: float = 1.0) -> Sparse:
    uniform_N1 = torch.rand(len(teacher_NK), 1, generator=torch.Generator().manual_seed(seed))
    chosen = choose((teacher_NK / T).log_softmax(-1), uniform_N1, top=top, drawn=drawn)
    return Sparse(*chosen, "tail", T)


def quality(bias: float, noise: float) -> Quality:
    return Quality(1.0, 1.0, 1.0, 1.0, bias, noise)


def probe(**estimators: Quality) -> Probe:
    return Probe(100, 0.8, 40.0, dict(estimators))


def test_all_choices_kept_are_the_dense_gradient() -> None:
    teacher_NK, student = pair()
    found = measure(teacher_NK, student, kept(teacher_NK, V, 0), bytes_per_token=1.0)
    assert found.covered == pytest.approx(1.0)
    assert found.estimators.keys() == {"tail", "renormalised"}
    for of in found.estimators.values():
        assert max(of.angle, of.head_angle, of.hidden_angle) < 0.01
        assert of.norm == pytest.approx(1.0, abs=1e-5)
        assert max(of.bias, of.noise) < 1e-4


@pytest.mark.parametrize("T", [1.0, 2.0])
@pytest.mark.parametrize("head", [{}, {"scale": 0.5, "softcap": 4.0}])
def test_angles_are_those_of_gradients_written_out(T: float, head: dict[str, Any]) -> None:
    """The whole batch at once, from p_hat, by the head's own backward."""
    teacher_NK, student = pair(**head)
    part = kept(teacher_NK, 4, 5, T=T)
    found = measure(teacher_NK, student, part, bytes_per_token=1.0)
    top_NK = torch.zeros(64, V).scatter(-1, part.top_ids_NT, part.top_p_NT)
    share_ND = (part.tail_N[:, None] / 5).expand(-1, 5)
    targets = {
        "renormalised": top_NK / top_NK.sum(-1, keepdim=True),
        "sampled": top_NK.scatter_add(-1, part.drawn_ids_ND, share_ND),
    }
    dense = written_out(student, (teacher_NK / T).softmax(-1), T)
    for name, p_NK in targets.items():
        mine, of = written_out(student, p_NK, T), found.estimators[name]
        for angle, index in ((of.head_angle, [0]), (of.hidden_angle, [1]), (of.angle, [0, 1])):
            a, b = (torch.cat([x[i].flatten() for i in index]).double() for x in (mine, dense))
            cosine = torch.nn.functional.cosine_similarity(a, b, dim=0).item()
            assert angle == pytest.approx(math.degrees(math.acos(cosine)), abs=0.05)
        assert of.norm == pytest.approx((a.norm() / b.norm()).item(), rel=1e-3)


def written_out(student: Factored, p_NK: Tensor, T: float) -> tuple[Tensor, Tensor]:
    weight_VH = student.head.weight_VH.clone().requires_grad_()
    hidden_NH = student.hidden_NH.clone().requires_grad_()
    assert student.head.bias_V is not None
    z_NK = hidden_NH @ weight_VH.T + student.head.bias_V
    z_NK = z_NK * student.head.scale
    if cap := student.head.softcap:
        z_NK = cap * (z_NK / cap).tanh()
    loss = -(p_NK * (z_NK / T).log_softmax(-1)).sum()
    mine, theirs = torch.autograd.grad(loss, (weight_VH, hidden_NH))
    return mine, theirs


def test_bias_and_noise_are_those_of_many_batches() -> None:
    """The same tokens over and over: sampled has no bias, tail has no noise."""
    teacher_NK, student = pair(N=16)
    many_NK = teacher_NK.repeat(64, 1)
    wide = Factored(student.hidden_NH.repeat(64, 1), student.head)
    found = measure(many_NK, wide, kept(many_NK, 4, 3), bytes_per_token=1.0).estimators
    assert found["tail"].noise < 1e-3 < 0.02 < found["tail"].bias
    assert found["tail"].bias == pytest.approx(found["tail"].error(1e9))
    assert found["sampled"].bias < 0.5 * found["sampled"].noise
    less = measure(
        many_NK[:256],
        Factored(wide.hidden_NH[:256], wide.head),
        kept(many_NK[:256], 4, 3),
        bytes_per_token=1.0,
    )
    ratio = less.estimators["sampled"].noise / found["sampled"].noise
    assert 1.5 < ratio < 2.7, "noise halves with four times the tokens"


def test_bias_and_noise_by_hand() -> None:
    """Two parts, off by 3 and by 1: what they share is sqrt(3 x 1) each, of a gradient of 10."""
    sums = _Sums()
    sums.add(torch.tensor([8.0]), torch.tensor([5.0]))
    sums.add(torch.tensor([6.0]), torch.tensor([5.0]))
    assert sums.bias_and_noise(2) == pytest.approx((0.12, 0.04))


def test_numbers_go_to_a_record() -> None:
    teacher_NK, student = pair()
    part = kept(teacher_NK, 4, 5)
    found = asdict(measure(teacher_NK, student, part, bytes_per_token=39.0))
    assert found["tokens"] == 64
    assert found["bytes_per_token"] == 39.0
    assert found["covered"] == pytest.approx(part.top_p_NT.sum(-1).mean().item())
    assert found["estimators"].keys() == {"tail", "renormalised", "sampled"}


def test_a_copy_of_the_teacher_has_finite_numbers() -> None:
    teacher_NK, student = pair(far=0.0)
    found = measure(teacher_NK, student, kept(teacher_NK, 4, 5), bytes_per_token=1.0)
    assert all(math.isfinite(x) for of in found.estimators.values() for x in asdict(of).values())
    assert choose_estimator(found)[0] == "tail"


def test_noise_averages_out_and_bias_does_not() -> None:
    both = probe(tail=quality(0.1, 0.02), sampled=quality(0.0, 0.5))
    assert both.estimators["sampled"].error(25) == pytest.approx(0.1)
    assert choose_estimator(both, horizon=20)[0] == "tail"
    assert choose_estimator(both, horizon=30)[0] == "sampled"
    assert choose_estimator(both, horizon=10)[0] == "tail"
    assert choose_estimator(both, horizon=10, tokens_per_step=300)[0] == "sampled"
    name, why = choose_estimator(both)
    assert why == (
        "estimator 'tail': over 10 steps of 100 tokens the gradient is off by 10.0% with 'tail' "
        "(bias 10.0%, noise 2.0%) and 15.8% with 'sampled' (bias 0.0%, noise 50.0%), measured on "
        "100 tokens"
    )
    assert name == "tail"


def test_the_only_one_is_chosen_and_renormalised_never() -> None:
    assert choose_estimator(probe(sampled=quality(0.0, 9.0)))[0] == "sampled"
    best = probe(tail=quality(0.5, 0.1), renormalised=quality(0.0, 0.0))
    assert choose_estimator(best)[0] == "tail"


def test_a_probe_of_other_tokens_is_refused() -> None:
    teacher_NK, student = pair()
    with pytest.raises(
        ValueError, match=r"alike for all, got 64 of the teacher, 64 .* and 63 kept"
    ):
        measure(teacher_NK, student, kept(teacher_NK[:63], 4, 5), bytes_per_token=1.0)
