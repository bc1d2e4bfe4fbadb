# N scored rows, K choices.

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from torch import Tensor

from stillhouse.numerics.divergences import (
    DIVERGENCES,
    cross_entropy,
    decoupled,
    forward_kl,
    jsd,
    logit_mse,
    reverse_kl,
    skew_kl,
    soften,
    standardise,
    total_variation,
)

CASES = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd 0": partial(jsd, beta=0.0),
    "jsd 0.001": partial(jsd, beta=1e-3),
    "jsd 0.3": partial(jsd, beta=0.3),
    "jsd 0.999": partial(jsd, beta=0.999),
    "jsd 1": partial(jsd, beta=1.0),
    "total_variation": total_variation,
    "skew_kl 0": partial(skew_kl, alpha=0.0),
    "skew_kl 0.1": partial(skew_kl, alpha=0.1),
    "skew_kl 0.9": partial(skew_kl, alpha=0.9),
    "decoupled": lambda s, t: decoupled(s, t, target_N=torch.arange(len(s)) % 3),
    "logit_mse": logit_mse,
}
every_divergence = pytest.mark.parametrize("divergence", CASES.values(), ids=CASES.keys())


def scores(seed: int, rows: int = 5, choices: int = 7, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, choices, generator=generator, dtype=torch.float64)


def gradient(divergence, student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    student_NK = student_NK.clone().requires_grad_()
    divergence(student_NK, teacher_NK).sum().backward()
    assert student_NK.grad is not None
    return student_NK.grad


# --- values worked by hand --------------------------------------------------------------------

# student (1/2, 1/2), teacher (3/4, 1/4); the scores carry a constant that must not matter
HALF = torch.tensor([[1.0, 1.0]])
QUARTERS = torch.tensor([[3.0, 1.0]]).log() + 5.0
LN2, LN3, LN5 = math.log(2), math.log(3), math.log(5)


@pytest.mark.parametrize(
    ("divergence", "value"),
    [
        (forward_kl, 0.75 * LN3 - LN2),
        (reverse_kl, LN2 - 0.5 * LN3),
        # m = (5/8, 3/8): 4 [ 1/2 (3/4 ln 6/5 + 1/4 ln 2/3) + 1/2 (1/2 ln 4/5 + 1/2 ln 4/3) ]
        (
            partial(jsd, beta=0.5),
            2 * (0.75 * (LN2 + LN3 - LN5) + 0.25 * (LN2 - LN3))
            + 2 * (0.5 * (2 * LN2 - LN5) + 0.5 * (2 * LN2 - LN3)),
        ),
        # mixture (5/8, 3/8)
        (partial(skew_kl, alpha=0.5), 0.75 * (LN2 + LN3 - LN5) + 0.25 * (LN2 - LN3)),
        (total_variation, 0.25),
    ],
    ids=["forward_kl", "reverse_kl", "jsd", "skew_kl", "total_variation"],
)
def test_value_by_hand(divergence, value):
    torch.testing.assert_close(divergence(HALF, QUARTERS), torch.tensor([value]))


def test_decoupled_by_hand():
    # student (1/2, 1/4, 1/4), teacher (1/4, 1/4, 1/2), target 0: the binary pair is
    # (1/2, 1/2) against (1/4, 3/4), the others (1/2, 1/2) against (1/3, 2/3)
    student_NK = torch.tensor([[2.0, 1.0, 1.0]]).log()
    teacher_NK = torch.tensor([[1.0, 1.0, 2.0]]).log()
    target_kl = 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2)
    others_kl = 1 / 3 * math.log(2 / 3) + 2 / 3 * math.log(4 / 3)
    value_N = decoupled(student_NK, teacher_NK, target_N=torch.tensor([0]), alpha=2.0, beta=3.0)
    torch.testing.assert_close(value_N, torch.tensor([2 * target_kl + 3 * others_kl]))


def test_logit_mse_by_hand():
    value_N = logit_mse(torch.tensor([[1.0, 2.0, 5.0]]), torch.tensor([[1.0, 4.0, 4.0]]))
    torch.testing.assert_close(value_N, torch.tensor([5 / 3]))


def test_cross_entropy_by_hand():
    value_N = cross_entropy(QUARTERS, torch.tensor([1]))
    torch.testing.assert_close(value_N, torch.tensor([2 * LN2]))


def test_soften_by_hand():
    assert soften(torch.tensor([[1.0, -3.0]]), 2.0).tolist() == [[0.5, -1.5]]


def test_kl_is_summed_over_choices_not_averaged():
    # all of the teacher on one of 1000 choices, the student uniform: log 1000
    teacher_NK = torch.full((1, 1000), -1e4).index_fill(1, torch.tensor([3]), 0.0)
    value_N = forward_kl(torch.zeros(1, 1000), teacher_NK)
    torch.testing.assert_close(value_N, torch.tensor([math.log(1000)]))


# --- against slow references ------------------------------------------------------------------


def softmax(scores_K: np.ndarray) -> np.ndarray:
    weights_K = np.exp(scores_K - scores_K.max())
    return weights_K / weights_K.sum()


def kl_loop(p_K: np.ndarray, q_K: np.ndarray) -> float:
    return sum(p * math.log(p / q) for p, q in zip(p_K, q_K, strict=True) if p > 0)


def jsd_loop(s_K: np.ndarray, t_K: np.ndarray, beta: float) -> float:
    m_K = beta * t_K + (1 - beta) * s_K
    return (beta * kl_loop(t_K, m_K) + (1 - beta) * kl_loop(s_K, m_K)) / (beta * (1 - beta))


def decoupled_loop(s_K: np.ndarray, t_K: np.ndarray, target: int) -> float:
    student, teacher = s_K[target], t_K[target]
    others_s_K, others_t_K = np.delete(s_K, target), np.delete(t_K, target)
    target_kl = kl_loop(np.array([teacher, 1 - teacher]), np.array([student, 1 - student]))
    return target_kl + 8 * kl_loop(others_t_K / (1 - teacher), others_s_K / (1 - student))


REFERENCES = {
    "forward_kl": (forward_kl, lambda s, t: kl_loop(t, s)),
    "reverse_kl": (reverse_kl, lambda s, t: kl_loop(s, t)),
    **{
        f"jsd {beta}": (partial(jsd, beta=beta), partial(jsd_loop, beta=beta))
        for beta in (1e-3, 0.1, 0.5, 0.8, 0.999)
    },
    **{
        f"skew_kl {alpha}": (
            partial(skew_kl, alpha=alpha),
            lambda s, t, alpha=alpha: kl_loop(t, alpha * t + (1 - alpha) * s),
        )
        for alpha in (1e-3, 0.1, 0.9)
    },
    "total_variation": (total_variation, lambda s, t: 0.5 * sum(abs(s - t))),
    "decoupled": (
        lambda s, t: decoupled(s, t, target_N=torch.full((len(s),), 2)),
        partial(decoupled_loop, target=2),
    ),
}


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 3e-6)], ids=str
)
@pytest.mark.parametrize("name", REFERENCES)
def test_agrees_with_a_loop_in_float64(name, dtype, tolerance):
    divergence, reference = REFERENCES[name]
    student_NK, teacher_NK = scores(0).to(dtype), scores(1).to(dtype)
    expected_N = [
        reference(softmax(s_K), softmax(t_K))
        for s_K, t_K in zip(student_NK.double().numpy(), teacher_NK.double().numpy(), strict=True)
    ]
    value_N = divergence(student_NK, teacher_NK)
    assert value_N.dtype == dtype
    np.testing.assert_allclose(value_N.numpy(), expected_N, rtol=tolerance)


def test_forward_kl_agrees_with_torch():
    student_NK, teacher_NK = scores(2), scores(3)
    expected_NK = torch.nn.functional.kl_div(
        student_NK.log_softmax(-1), teacher_NK.softmax(-1), reduction="none"
    )
    torch.testing.assert_close(forward_kl(student_NK, teacher_NK), expected_NK.sum(-1))


def test_cross_entropy_agrees_with_torch():
    target_N = torch.tensor([0, 6, 2, 2, 5])
    expected_N = torch.nn.functional.cross_entropy(scores(2), target_N, reduction="none")
    torch.testing.assert_close(cross_entropy(scores(2), target_N), expected_N)


def test_jsd_at_one_half_is_four_times_the_standard_one():
    expected_N = 4 * jensenshannon(scores(0).softmax(-1), scores(1).softmax(-1), axis=1) ** 2
    np.testing.assert_allclose(jsd(scores(0), scores(1), beta=0.5).numpy(), expected_N)


@pytest.mark.parametrize(
    "name", ["forward_kl", "reverse_kl", "jsd 0.3", "jsd 0.001", "skew_kl 0.1", "decoupled"]
)
def test_float32_is_accurate_close_to_equality(name):
    # p log p - p log q would leave rounding noise of about 1e-7, a thousand times the value
    teacher_NK = scores(4, choices=50)
    student_NK = (teacher_NK + 1e-5 * scores(5, choices=50)).float()
    exact_N = CASES[name](student_NK.double(), teacher_NK.float().double())
    value_N = CASES[name](student_NK, teacher_NK.float())
    assert exact_N.max() < 1e-7
    torch.testing.assert_close(value_N.double(), exact_N, rtol=0.05, atol=0.0)


# --- identities and limits --------------------------------------------------------------------


@every_divergence
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_equal_scores_have_value_and_gradient_zero(divergence, dtype):
    same_NK = scores(6, scale=20.0).to(dtype)
    assert divergence(same_NK, same_NK).tolist() == [0.0] * 5
    assert gradient(divergence, same_NK, same_NK).abs().max() == 0


@every_divergence
def test_gradient_is_right(divergence):
    teacher_NK = scores(7, rows=3, choices=4)
    student_NK = scores(8, rows=3, choices=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda s_NK: divergence(s_NK, teacher_NK), student_NK)


@every_divergence
def test_second_derivative_is_right(divergence):
    teacher_NK = scores(7, rows=2, choices=3)
    student_NK = scores(8, rows=2, choices=3).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda s_NK: divergence(s_NK, teacher_NK), student_NK)


@every_divergence
def test_gradient_of_each_row_by_torch_func(divergence):
    def first_row(student_K: Tensor, teacher_K: Tensor) -> Tensor:
        return divergence(student_K.unsqueeze(0), teacher_K.unsqueeze(0))[0]

    pair = scores(7), scores(8)
    grad_NK = torch.func.vmap(torch.func.grad(first_row))(*pair)
    for row_K, *one in zip(grad_NK, *pair, strict=True):
        one_NK = gradient(divergence, *(x.unsqueeze(0) for x in one))
        torch.testing.assert_close(row_K, one_NK[0])


@every_divergence
def test_teacher_gets_no_gradient(divergence):
    teacher_NK = scores(7).requires_grad_()
    gradient(divergence, scores(8), teacher_NK)
    assert teacher_NK.grad is None


@every_divergence
def test_padded_choices_change_nothing(divergence):
    padding_NK = torch.full((5, 4), -math.inf)
    student_NK, teacher_NK = scores(9).float(), scores(10).float()
    wide_student_NK = torch.cat([student_NK, padding_NK], dim=1)
    wide_teacher_NK = torch.cat([teacher_NK, padding_NK], dim=1)
    value_N = divergence(wide_student_NK, wide_teacher_NK)
    torch.testing.assert_close(value_N, divergence(student_NK, teacher_NK))
    wide_grad_NK = gradient(divergence, wide_student_NK, wide_teacher_NK)
    torch.testing.assert_close(wide_grad_NK[:, :7], gradient(divergence, student_NK, teacher_NK))
    assert wide_grad_NK[:, 7:].tolist() == [[0.0] * 4] * 5


@every_divergence
def test_bfloat16_is_computed_in_float32(divergence):
    student_NK, teacher_NK = scores(11).bfloat16(), scores(12).bfloat16()
    value_N = divergence(student_NK, teacher_NK)
    assert value_N.dtype == torch.float32
    assert torch.equal(value_N, divergence(student_NK.float(), teacher_NK.float()))


wild_scores = st.lists(
    st.tuples(
        st.floats(-110, 110, width=32),
        st.one_of(
            st.just(0.0), st.floats(-110, 110, width=32), st.floats(-(2**-10), 2**-10, width=32)
        ),
    ),
    min_size=3,
    max_size=8,
)


@every_divergence
@settings(max_examples=60, deadline=None)
@given(pairs=wild_scores)
def test_never_negative_never_nan(divergence, pairs):
    teacher_NK = torch.tensor([[teacher for teacher, _ in pairs]])
    student_NK = teacher_NK + torch.tensor([[step for _, step in pairs]])
    assert divergence(student_NK, teacher_NK).item() >= 0  # NaN fails too
    assert gradient(divergence, student_NK, teacher_NK).isfinite().all()


def test_the_smallest_probabilities_do_not_turn_a_value_negative():
    # both second choices are below float32's normal range, where q - p + p log(p/q) rounds to -0
    for step in np.linspace(-3, 3, 61):
        student_NK = torch.tensor([[0.0, -103.0 + step]], dtype=torch.float32)
        for divergence in (forward_kl, reverse_kl, partial(jsd, beta=0.3)):
            assert divergence(student_NK, torch.tensor([[0.0, -103.0]])).item() >= 0


@pytest.mark.parametrize(("end", "limit"), [(0.0, forward_kl), (1.0, reverse_kl)])
@pytest.mark.parametrize("step", [1e-3, 1e-6, 1e-12, 1e-29, 1e-300])
def test_jsd_meets_its_limits(end, limit, step):
    beta = abs(end - step)
    student_NK, teacher_NK = scores(13, scale=1.0), scores(14, scale=1.0)
    # the family is smooth in beta, so the distance shrinks with the step until rounding
    tolerance = 30 * step + 1e-5
    for dtype in (torch.float32, torch.float64):
        pair = student_NK.to(dtype), teacher_NK.to(dtype)
        near = partial(jsd, beta=beta)
        torch.testing.assert_close(near(*pair), limit(*pair), rtol=tolerance, atol=0)
        slopes = gradient(near, *pair), gradient(limit, *pair)
        torch.testing.assert_close(*slopes, rtol=tolerance, atol=tolerance)
    assert torch.equal(jsd(student_NK, teacher_NK, beta=end), limit(student_NK, teacher_NK))


def test_jsd_mirrors():
    pair = scores(15), scores(16)
    torch.testing.assert_close(jsd(*pair, beta=0.2), jsd(*reversed(pair), beta=0.8))


def test_skew_kl_meets_forward_kl_and_is_bounded():
    pair = scores(17), scores(18)
    torch.testing.assert_close(skew_kl(*pair, alpha=1e-9), forward_kl(*pair))
    apart = torch.tensor([[0.0, -500.0]]), torch.tensor([[-500.0, 0.0]])
    torch.testing.assert_close(skew_kl(*apart, alpha=0.1), torch.tensor([math.log(10)]))


def test_decoupled_with_the_papers_weights_is_forward_kl():
    student_NK, teacher_NK = scores(19), scores(20)
    target_N = torch.tensor([0, 3, 6, 6, 1])
    parts = partial(decoupled, student_NK, teacher_NK, target_N=target_N)
    target_N1 = target_N.unsqueeze(-1)
    rest_N = 1 - teacher_NK.softmax(-1).gather(-1, target_N1).squeeze(-1)
    whole_N = parts(alpha=1.0, beta=0.0) + rest_N * parts(alpha=0.0, beta=1.0)
    torch.testing.assert_close(whole_N, forward_kl(student_NK, teacher_NK))


def test_total_variation_of_disjoint_rows_is_one():
    apart = torch.tensor([[0.0, -500.0]]), torch.tensor([[-500.0, 0.0]])
    assert total_variation(*apart).tolist() == [1.0]


def test_logit_mse_does_not_grow_with_the_number_of_choices():
    student_NK, teacher_NK = scores(21), scores(22)
    once_N = logit_mse(student_NK, teacher_NK)
    twice_N = logit_mse(student_NK.repeat(1, 2), teacher_NK.repeat(1, 2))
    torch.testing.assert_close(once_N, twice_N)


def test_cross_entropy_is_forward_kl_to_a_certain_teacher():
    target_N = torch.tensor([0, 6, 2, 2, 5])
    certain_NK = torch.full((5, 7), -math.inf).scatter(1, target_N.unsqueeze(-1), 0.0)
    expected_N = forward_kl(scores(2), certain_NK.double())
    torch.testing.assert_close(cross_entropy(scores(2), target_N), expected_N)


# --- far apart, excluded, broken --------------------------------------------------------------


def test_far_apart_rows_stay_exact():
    student_NK = torch.tensor([[0.0, -300.0]])
    teacher_NK = torch.tensor([[-300.0, 0.0]])
    for divergence in (forward_kl, reverse_kl):
        assert divergence(student_NK, teacher_NK).tolist() == [300.0]
    assert gradient(forward_kl, student_NK, teacher_NK).tolist() == [[1.0, -1.0]]


def test_a_choice_excluded_on_one_side_only():
    open_NK = torch.tensor([[0.0, 0.0]])
    closed_NK = torch.tensor([[0.0, -math.inf]])
    ln2 = pytest.approx(LN2)
    assert forward_kl(open_NK, closed_NK).item() == ln2
    assert reverse_kl(closed_NK, open_NK).item() == ln2
    assert forward_kl(closed_NK, open_NK).item() == math.inf
    assert reverse_kl(open_NK, closed_NK).item() == math.inf
    assert total_variation(open_NK, closed_NK).item() == 0.5
    expected = 4 * jensenshannon([0.5, 0.5], [1.0, 0.0]) ** 2
    for pair in ((open_NK, closed_NK), (closed_NK, open_NK)):
        assert jsd(*pair, beta=0.5).item() == pytest.approx(expected)
        assert gradient(partial(jsd, beta=0.5), *pair).isfinite().all()
        assert gradient(partial(skew_kl, alpha=0.5), *pair).isfinite().all()


@every_divergence
@pytest.mark.parametrize("broken", [[math.nan, 0.0, 1.0], [-math.inf] * 3], ids=str)
def test_a_broken_row_stays_visible(divergence, broken):
    student_NK = torch.tensor([[1.0, 2.0, 3.0], broken])
    value_N = divergence(student_NK, torch.tensor([[1.0, 2.0, 0.0], broken]))
    assert value_N.isnan().tolist() == [False, True]


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_soften_refuses_a_temperature(temperature):
    with pytest.raises(ValueError, match=r"temperature must be > 0.*got"):
        soften(HALF, temperature)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(jsd, beta=1.1), r"beta must be in \[0, 1\], got 1.1"),
        (partial(jsd, beta=math.nan), "got nan"),
        (partial(skew_kl, alpha=1.0), r"alpha must be in \[0, 1\), got 1.0"),
        (partial(decoupled, target_N=torch.tensor([0]), beta=-1.0), "must be >= 0, got 1.0 and -1"),
    ],
)
def test_a_weight_out_of_range_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(HALF, QUARTERS)


def test_decoupled_needs_two_choices():
    with pytest.raises(ValueError, match="at least 2 choices, got 1"):
        decoupled(HALF[:, :1], HALF[:, :1], target_N=torch.tensor([0]))


def test_the_dict_holds_the_functions_under_their_names():
    assert all(function.__name__ == name for name, function in DIVERGENCES.items())
    assert {name.split()[0] for name in CASES} == set(DIVERGENCES)


# --- standardise ------------------------------------------------------------------------------


def test_standardise_by_hand():
    # mean 2, deviation sqrt((1 + 0 + 1) / 2) = 1
    assert standardise(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[-1.0, 0.0, 1.0]]


def test_standardise_agrees_with_torch():
    raw_NK = scores(23)
    expected_NK = (raw_NK - raw_NK.mean(-1, keepdim=True)) / raw_NK.std(-1, keepdim=True)
    torch.testing.assert_close(standardise(raw_NK), expected_NK)


def test_standardise_removes_shift_and_scale():
    raw_NK = scores(24).float()
    for scale in (1e-20, 1e20):
        torch.testing.assert_close(standardise(scale * raw_NK), standardise(raw_NK))
    torch.testing.assert_close(standardise(raw_NK + 8), standardise(raw_NK), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("choices", [1, 4, 9])
def test_standardise_turns_equal_scores_into_zeros(choices):
    # the mean of 0.1 nine times is not 0.1 in float32
    flat_NK = torch.full((2, choices), 0.1).requires_grad_()
    z_NK = standardise(flat_NK)
    z_NK.square().sum().backward()
    assert z_NK.tolist() == [[0.0] * choices] * 2
    assert flat_NK.grad is not None
    assert flat_NK.grad.abs().max() == 0


def test_standardise_leaves_padded_choices_out():
    raw_NK = scores(25)
    wide_NK = torch.cat([raw_NK, torch.full((5, 2), -math.inf)], dim=1).requires_grad_()
    z_NK = standardise(wide_NK)
    torch.testing.assert_close(z_NK[:, :7], standardise(raw_NK))
    assert z_NK[:, 7:].tolist() == [[-math.inf] * 2] * 5
    forward_kl(z_NK, standardise(wide_NK.detach().flip(0))).sum().backward()
    assert wide_NK.grad is not None
    assert wide_NK.grad.isfinite().all()


def test_standardise_gradient_is_right():
    assert torch.autograd.gradcheck(standardise, scores(26).requires_grad_())


def test_standardise_keeps_a_broken_row_visible():
    assert standardise(torch.tensor([[0.0, math.nan, 1.0]])).isnan().all()
