"""Divergences between a student's and a teacher's scores, one value per row.

Scores are unnormalised log-probabilities ("logits"). Every function computes in float32 (float64
where it is given float64), treats the teacher as a constant, and leaves weighting, temperature
and averaging to the caller. A choice that is -inf on both sides (a padded vocabulary) contributes
exactly nothing, to the value and to the gradient. NaN goes through and stays visible.

The divergences are non-negative term by term, not by a clamp: KL is summed as p log(p/q) - p + q,
whose extra part adds up to zero over a row.
"""

# Axes: N scored rows, K choices.

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

EXCLUDED = -math.inf


def soften(scores_NK: Float[Tensor, "N K"], temperature: float) -> Float[Tensor, "N K"]:
    """Scores / temperature, in the scores' dtype. Hinton 2015 sec. 2.

    The factor T^2 that keeps gradients comparable between temperatures is the objective's.
    Raises ValueError unless 0 < temperature < inf.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be > 0 and finite, got {temperature}")
    return scores_NK / temperature


def standardise(scores_NK: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """(score - row mean) / row standard deviation, no unit. Sun et al. 2024, Z-score.

    The deviation divides by K - 1, as the authors' code does (`torch.std`). Unlike there no
    epsilon is added; a row whose scores are all equal becomes zeros with zero gradient, and a
    choice at -inf stays there and is left out of mean, deviation and K.
    """
    scores_NK = _at_least_float32(scores_NK)
    kept_NK = scores_NK != EXCLUDED
    high_N1 = scores_NK.detach().amax(-1, keepdim=True)
    low_N1 = scores_NK.detach().masked_fill(~kept_NK, math.inf).amin(-1, keepdim=True)
    # Compared, not derived from the deviation: rounding gives equal scores a deviation above 0.
    flat_N1 = high_N1 <= low_N1
    count_N1 = kept_NK.sum(-1, keepdim=True)
    # The result does not depend on the scale, so dividing by the range first (a constant to
    # autograd) leaves the gradient exact and keeps tiny deviations from underflowing.
    scaled_NK = (scores_NK - high_N1).masked_fill(~kept_NK | flat_N1, 0.0)
    scaled_NK = scaled_NK / (high_N1 - low_N1).masked_fill(flat_N1, 1.0)
    centred_NK = scaled_NK - scaled_NK.sum(-1, keepdim=True) / count_N1
    squares_N1 = centred_NK.masked_fill(~kept_NK, 0.0).square().sum(-1, keepdim=True)
    deviation_N1 = (squares_N1 / (count_N1 - 1)).masked_fill(flat_N1, 1.0).sqrt()
    z_NK = (centred_NK / deviation_N1).masked_fill(flat_N1, 0.0)
    return z_NK.masked_fill(~kept_NK, EXCLUDED)


def forward_kl(
    student_NK: Float[Tensor, "N K"], teacher_NK: Float[Tensor, "N K"]
) -> Float[Tensor, " N"]:
    """KL(teacher || student) per row, nats. Hinton 2015 sec. 2, without the T^2 factor.

    +inf where the student excludes (-inf) a choice that the teacher does not.
    """
    logs_NK, logt_NK = _log_probabilities(student_NK, teacher_NK)
    return _kl(logt_NK, logs_NK)


def reverse_kl(
    student_NK: Float[Tensor, "N K"], teacher_NK: Float[Tensor, "N K"]
) -> Float[Tensor, " N"]:
    """KL(student || teacher) per row, nats. Gu et al. 2024 (MiniLLM) sec. 2.

    +inf where the teacher excludes (-inf) a choice that the student does not.
    """
    logs_NK, logt_NK = _log_probabilities(student_NK, teacher_NK)
    return _kl(logs_NK, logt_NK)


def jsd(
    student_NK: Float[Tensor, "N K"], teacher_NK: Float[Tensor, "N K"], *, beta: float
) -> Float[Tensor, " N"]:
    """Generalised Jensen-Shannon divergence per row, nats, scaled to meet both KLs.

        [beta KL(teacher || m) + (1 - beta) KL(student || m)] / (beta (1 - beta)),
        m = beta teacher + (1 - beta) student

    Agarwal et al. 2024 (GKD) sec. 2, there without the divisor, so that it falls to 0 at both
    ends. Here beta -> 0 gives forward_kl and beta -> 1 gives reverse_kl, which are returned at
    exactly 0 and 1 (and below 1e-30, where float32 runs out of room). At beta = 0.5 the value is
    4 times the standard Jensen-Shannon divergence, hence at most 4 log 2. Raises ValueError
    unless 0 <= beta <= 1.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be in [0, 1], got {beta}")
    if beta < 1e-30:
        return forward_kl(student_NK, teacher_NK)
    if beta == 1:
        return reverse_kl(student_NK, teacher_NK)
    logs_NK, logt_NK = _log_probabilities(student_NK, teacher_NK)
    logm_NK = _log_mixture(logt_NK, logs_NK, beta, 1 - beta)
    ratio_NK = logt_NK - logs_NK.detach()
    to_student_NK = -_log_tilt(ratio_NK, beta, 1 - beta)
    to_teacher_NK = -_log_tilt(-ratio_NK, 1 - beta, beta)
    from_teacher_N = _kl(logt_NK, logm_NK, to_teacher_NK)
    return from_teacher_N / (1 - beta) + _kl(logs_NK, logm_NK, to_student_NK) / beta


def skew_kl(
    student_NK: Float[Tensor, "N K"], teacher_NK: Float[Tensor, "N K"], *, alpha: float
) -> Float[Tensor, " N"]:
    """KL(teacher || alpha teacher + (1 - alpha) student) per row, nats.

    Ko et al. 2024 (DistiLLM) sec. 3.1, skew KL; they use alpha = 0.1. At alpha = 0 it is
    forward_kl, and for alpha > 0 it is at most -log(alpha). Raises ValueError unless
    0 <= alpha < 1 (at 1 nothing of the student would be left).
    """
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha must be in [0, 1), got {alpha}")
    if alpha == 0:
        return forward_kl(student_NK, teacher_NK)
    logs_NK, logt_NK = _log_probabilities(student_NK, teacher_NK)
    logm_NK = _log_mixture(logt_NK, logs_NK, alpha, 1 - alpha)
    return _kl(logt_NK, logm_NK, -_log_tilt(logs_NK.detach() - logt_NK, 1 - alpha, alpha))


def total_variation(
    student_NK: Float[Tensor, "N K"], teacher_NK: Float[Tensor, "N K"]
) -> Float[Tensor, " N"]:
    """Half the summed |student - teacher| probability per row, in [0, 1], no unit.

    Wen et al. 2023 (f-distill) sec. 3. The gradient is 0 where both probabilities are equal.
    """
    logs_NK, logt_NK = _log_probabilities(student_NK, teacher_NK)
    return 0.5 * (logs_NK.exp() - logt_NK.exp()).abs().sum(-1)


def decoupled(
    student_NK: Float[Tensor, "N K"],
    teacher_NK: Float[Tensor, "N K"],
    *,
    target_N: Int[Tensor, " N"],
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Float[Tensor, " N"]:
    """alpha TCKD + beta NCKD per row, nats. Zhao et al. 2022 (DKD) sec. 3.

    TCKD is the forward KL between the two binary distributions (target, any other choice), NCKD
    the forward KL among the others alone. The ordinary forward_kl is
    TCKD + (1 - teacher's target probability) NCKD. Where the authors' code subtracts a large
    number to hide the target, it is excluded here. Raises ValueError for a negative weight or
    fewer than two choices.
    """
    if alpha < 0 or beta < 0:
        raise ValueError(f"alpha and beta must be >= 0, got {alpha} and {beta}")
    if student_NK.shape[1] < 2:
        raise ValueError(f"decoupled needs at least 2 choices, got {student_NK.shape[1]}")
    student_N2, student_others_NK = _split_target(student_NK, target_N)
    teacher_N2, teacher_others_NK = _split_target(teacher_NK, target_N)
    target_kl_N = forward_kl(student_N2, teacher_N2)
    return alpha * target_kl_N + beta * forward_kl(student_others_NK, teacher_others_NK)


def logit_mse(
    student_NK: Float[Tensor, "N K"], teacher_NK: Float[Tensor, "N K"]
) -> Float[Tensor, " N"]:
    """Mean over choices of (student score - teacher score)^2 per row, squared score units.

    Ba and Caruana 2014 sec. 2.2, there summed and halved. A choice that is -inf on both sides is
    counted neither in the sum nor among the choices. Scores are compared as they are, so a
    constant added to one side counts.
    """
    padded_NK = _excluded_by_both(student_NK, teacher_NK)
    student_NK = _at_least_float32(student_NK).masked_fill(padded_NK, 0.0)
    teacher_NK = _at_least_float32(teacher_NK).detach().masked_fill(padded_NK, 0.0)
    return (student_NK - teacher_NK).square().sum(-1) / (~padded_NK).sum(-1)


def cross_entropy(
    student_NK: Float[Tensor, "N K"], target_N: Int[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """-log of the student's probability of the target per row, nats."""
    logs_NK = _at_least_float32(student_NK).log_softmax(-1)
    return -logs_NK.gather(-1, target_N.long().unsqueeze(-1)).squeeze(-1)


DIVERGENCES: dict[str, Callable[..., Tensor]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "total_variation": total_variation,
    "skew_kl": skew_kl,
    "decoupled": decoupled,
    "logit_mse": logit_mse,
}


def _at_least_float32(scores_NK: Tensor) -> Tensor:
    return scores_NK if scores_NK.dtype == torch.float64 else scores_NK.float()


def _excluded_by_both(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    return (student_NK == EXCLUDED) & (teacher_NK == EXCLUDED)


def _log_probabilities(student_NK: Tensor, teacher_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the student and of the teacher, the latter detached.

    A choice excluded on both sides is set to 0 on both: equal and finite, where the terms of
    every divergence here and their gradients are exactly 0.
    """
    logs_NK = _at_least_float32(student_NK).log_softmax(-1)
    logt_NK = _at_least_float32(teacher_NK).detach().log_softmax(-1)
    padded_NK = _excluded_by_both(logs_NK, logt_NK)
    return logs_NK.masked_fill(padded_NK, 0.0), logt_NK.masked_fill(padded_NK, 0.0)


def _split_target(scores_NK: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of (target, any other choice), and all scores with the target excluded."""
    scores_NK = _at_least_float32(scores_NK)
    index_N1 = target_N.long().unsqueeze(-1)
    others_NK = scores_NK.scatter(-1, index_N1, EXCLUDED)
    either_N2 = torch.cat(
        [scores_NK.gather(-1, index_N1), others_NK.logsumexp(-1, keepdim=True)], dim=-1
    )
    return either_N2, others_NK


def _log_mixture(loga_NK: Tensor, logb_NK: Tensor, weight: float, rest: float) -> Tensor:
    """log(weight a + rest b), with weight + rest = 1 and neither 0."""
    return torch.logaddexp(loga_NK + math.log(weight), logb_NK + math.log(rest))


def _log_tilt(ratio_NK: Tensor, weight: float, rest: float) -> Tensor:
    """log(rest + weight e^ratio), accurate also where it is close to 0. Not differentiated.

    With ratio = log(a / b) this is _log_mixture(...) - log b, which as a difference of two
    rounded logarithms would drown in their rounding when weight is small.
    """
    step_NK = weight * torch.expm1(ratio_NK)
    far_NK = _log_mixture(ratio_NK, torch.zeros_like(ratio_NK), weight, rest)
    return torch.where(step_NK.abs() < 0.5, torch.log1p(step_NK), far_NK)


def _kl(logp_NK: Tensor, logq_NK: Tensor, logp_minus_logq_NK: Tensor | None = None) -> Tensor:
    """KL(p || q) per row, nats. The difference may be given where it is known more accurately."""
    if logp_minus_logq_NK is None:
        logp_minus_logq_NK = (logp_NK - logq_NK).detach()
    terms_NK: Tensor = _KLTerms.apply(logp_NK, logq_NK, logp_minus_logq_NK)
    return terms_NK.sum(-1)


class _KLTerms(torch.autograd.Function):
    """p log(p/q) - p + q per choice, never negative; gradients p log(p/q) and q - p.

    A Function of its own because autograd would keep an intermediate per operation, each as
    large as the vocabulary, and differentiate the branch that was not taken.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(logp_NK: Tensor, logq_NK: Tensor, d_NK: Tensor) -> Tensor:
        # A product of non-negative factors on each side of p = q; 0 when p is 0 and q is, too.
        p_NK, distance_NK = logp_NK.exp(), d_NK.abs()
        rise_NK = -torch.expm1(-distance_NK)
        above_NK = torch.where(p_NK == 0, p_NK, p_NK * (distance_NK - rise_NK))
        fall_NK = distance_NK * (1 - rise_NK)
        fall_NK = fall_NK.masked_fill(distance_NK == math.inf, 0.0)
        below_NK = logq_NK.exp() * (rise_NK - fall_NK)
        near_NK = p_NK * _curvature(d_NK)
        far_NK = torch.where(d_NK > 0, above_NK, below_NK)
        return torch.where(distance_NK < 0.5, near_NK, far_NK)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_NK: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None]:
        logp_NK, logq_NK, d_NK = ctx.saved_tensors
        p_NK, q_NK = logp_NK.exp(), logq_NK.exp()
        if torch.is_grad_enabled():  # a second derivative may follow, and d came without its own
            rough_NK = logp_NK - logq_NK
            d_NK = d_NK + (rough_NK - rough_NK.detach())
        to_p_NK = to_q_NK = None
        if ctx.needs_input_grad[0]:
            to_p_NK = grad_NK * torch.where(p_NK == 0, p_NK, p_NK * d_NK)
        if ctx.needs_input_grad[1]:
            # q - p, through the difference: exactly 0 where it is 0.
            shrink_NK = torch.expm1(torch.where(d_NK < 0, d_NK, -d_NK))
            to_q_NK = grad_NK * torch.where(d_NK < 0, -q_NK, p_NK) * shrink_NK
        return to_p_NK, to_q_NK, None


def _curvature(d_NK: Tensor) -> Tensor:
    """e^-d - 1 + d for |d| < 1/2, by its series: written out, it cancels to noise near 0."""
    terms = 16 if d_NK.dtype == torch.float64 else 10
    sum_NK = torch.ones_like(d_NK)
    for k in range(terms, 2, -1):
        sum_NK = 1 - d_NK / k * sum_NK
    return 0.5 * d_NK.square() * sum_NK
