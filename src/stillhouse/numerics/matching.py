"""Distances between what a student and a teacher hold inside, one value per example.

Each is a mean over that example's own real tokens (`mask_BT`; None: every token is real), so it
depends neither on padding nor on the batch around it. A padded position reaches neither value nor
gradient, whatever it holds, NaN included; an example without a real token gets 0. The teacher is a
constant. Sums, norms and softmax are taken in float32 (float64 where given float64), differences
in the dtype they come in. NaN in a real place goes through and stays visible.

Equal inputs give exactly 0, and no value is ever negative: all are sums of squares, or forward_kl.
The gradients are written out by hand, for speed; asking for a second one is an error.
"""

# Axes: B examples, T tokens, H hidden width (after any projection), G another width, A heads,
# R relation heads, D width of a head (E: the other side's), L layers. An axis annotated _ is
# checked in the function, by a plain sentence.

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stillhouse.numerics.divergences import forward_kl

CHUNK = {"cpu": 1 << 18}  # elements at once, to stay in the cache; elsewhere 1 << 26, for memory


def hint(
    student_BTH: Float[Tensor, "B T H"],
    teacher_BTH: Float[Tensor, "B T _"],
    mask_BT: Bool[Tensor, "B T"] | None,
    *,
    variant: str = "paper",
) -> Float[Tensor, " B"]:
    """Half the squared distance to the teacher's state, summed over H, a mean over real tokens.

    Romero et al. 2015 (FitNets) eq. 3, where the student's state has been through the regressor.
    "reference" divides by H too: HintCost in the authors' code averages over the channels of a
    picture (axes c01b) and sums over one of its sides, which tokens don't have.
    """
    distance_B = _distance_per_token(student_BTH, teacher_BTH, mask_BT) / 2
    return distance_B if _is_paper(variant) else distance_B / student_BTH.shape[2]


def patience(
    student_BLH: Float[Tensor, "B L H"],
    teacher_BLH: Float[Tensor, "B _ _"],
    *,
    normalise: bool = True,
    variant: str = "paper",
) -> Float[Tensor, " B"]:
    """Squared distance of the [CLS] states of L layers, each scaled to length 1, summed over L.

    Sun et al. 2019 (PKD), L_PT. "reference" divides by L * H, as the `mse_loss` of the authors'
    code does, to which their weights belong. `normalise=False` leaves the lengths as they are. A
    state that is all 0 stays so.
    """
    _, layers, width = student_BLH.shape
    if normalise:
        student_BLH, teacher_BLH = _unit(student_BLH), _unit(teacher_BLH)
    distance_B = _squared_distance(student_BLH, teacher_BLH, None)
    return distance_B if _is_paper(variant) else distance_B / (layers * width)


def hidden_mse(
    student_BTH: Float[Tensor, "B T H"],
    teacher_BTH: Float[Tensor, "B T _"],
    mask_BT: Bool[Tensor, "B T"] | None,
) -> Float[Tensor, " B"]:
    """Mean over real tokens and H of the squared difference.

    Jiao et al. 2020 (TinyBERT), L_hidn and L_embd; their code counts padding too.
    """
    return _distance_per_token(student_BTH, teacher_BTH, mask_BT) / student_BTH.shape[2]


def attention_mse(
    student_BATT: Float[Tensor, "B A T T"],
    teacher_BATT: Float[Tensor, "B _ T T"],
    mask_BT: Bool[Tensor, "B T"] | None,
) -> Float[Tensor, " B"]:
    """Mean squared difference of attention scores over heads, real queries and real keys.

    Jiao et al. 2020 (TinyBERT), L_attn, on scores before the softmax; their code counts padded
    queries, and padded keys as zeros. Raises ValueError where the numbers of heads differ.
    """
    _check_heads(student_BATT, teacher_BATT)
    _, A, T, _ = student_BATT.shape
    padded_B1TT = None if mask_BT is None else ~_both_real(mask_BT)
    tokens_B = _tokens(mask_BT, T)
    return _squared_distance(student_BATT, teacher_BATT, padded_B1TT) / (tokens_B * tokens_B * A)


def attention_kl(
    student_BATT: Float[Tensor, "B A T T"],
    teacher_BATT: Float[Tensor, "B _ T T"],
    mask_BT: Bool[Tensor, "B T"] | None,
) -> Float[Tensor, " B"]:
    """KL(teacher || student) of attention over real keys, nats, mean over heads and real queries.

    Wang et al. 2020 (MiniLM), L_AT. Takes scores; the softmax over keys is taken here. Raises
    ValueError where the numbers of heads differ.
    """
    _check_heads(student_BATT, teacher_BATT)
    _, A, T, _ = student_BATT.shape
    sum_B: Tensor = _SummedKL.apply(student_BATT, teacher_BATT.detach(), mask_BT)
    return sum_B / (_tokens(mask_BT, T) * A)


def split_heads(x_BATD: Float[Tensor, "B A T D"], heads: int) -> Float[Tensor, "B R T E"]:
    """The same states as `heads` relation heads: all heads of a token side by side, cut anew.

    Wang et al. 2021 (MiniLMv2), relation heads. Raises ValueError unless A * D divides by `heads`.
    """
    B, A, T, D = x_BATD.shape
    if heads < 1 or A * D % heads:
        raise ValueError(f"{A} heads of width {D} ({A * D}) do not split into {heads} heads")
    return x_BATD.transpose(1, 2).reshape(B, T, heads, A * D // heads).transpose(1, 2)


def relation_kl(
    student_BRTD: Float[Tensor, "B R T D"],
    teacher_BRTE: Float[Tensor, "B _ T E"],
    mask_BT: Bool[Tensor, "B T"] | None,
) -> Float[Tensor, " B"]:
    """KL(teacher || student) of the relations among real tokens, nats, mean over R and tokens.

    The relation of x is softmax(x x^T / sqrt(its own width)). Wang et al. 2020 (MiniLM), L_VR, of
    values; Wang et al. 2021 (MiniLMv2), of queries, keys and values after split_heads.
    Raises ValueError where the numbers of relation heads differ.
    """
    _check_heads(student_BRTD, teacher_BRTE)
    student_BRTT, teacher_BRTT = (
        _products(x / math.sqrt(x.shape[3]), x)
        for x in (_cleared(student_BRTD, mask_BT), _cleared(teacher_BRTE.detach(), mask_BT))
    )
    return attention_kl(student_BRTT, teacher_BRTT, mask_BT)


def cosine(
    student_BTH: Float[Tensor, "B T H"],
    teacher_BTH: Float[Tensor, "B T _"],
    mask_BT: Bool[Tensor, "B T"] | None,
) -> Float[Tensor, " B"]:
    """1 - cosine of the student's and the teacher's state, in [0, 2], a mean over real tokens.

    Sanh et al. 2019 (DistilBERT), L_cos. Computed as half the squared distance of the states
    scaled to length 1, the same number without its cancellation near 0. A state that is all 0 has
    no direction: it counts 1/2 beside any other, and 0 beside its like.
    """
    student_BTH, teacher_BTH = (
        _unit(_cleared(x, mask_BT)) for x in (student_BTH, teacher_BTH.detach())
    )
    return _distance_per_token(student_BTH, teacher_BTH, mask_BT) / 2


def gram_mse(
    student_BTH: Float[Tensor, "B T H"],
    student2_BTH: Float[Tensor, "B T H"],
    teacher_BTG: Float[Tensor, "B T G"],
    teacher2_BTG: Float[Tensor, "B T G"],
    mask_BT: Bool[Tensor, "B T"] | None,
) -> Float[Tensor, " B"]:
    """Mean squared difference of token-by-token similarities, over pairs of real tokens.

    The similarity of two layers' states x and y is x y^T / width. Huang and Wang 2017 (neuron
    selectivity transfer), as TextBrewer's `mmd_loss` has it without a mask. Given a mask, that
    divides by the padded length T instead of the width, so its value changes with padding: with
    equal widths H it is (H / T)^2 times this one.
    """
    student_BTT, teacher_BTT = (
        _products(_cleared(x, mask_BT) / x.shape[2], _cleared(y, mask_BT))
        for x, y in ((student_BTH, student2_BTH), (teacher_BTG.detach(), teacher2_BTG.detach()))
    )
    tokens_B = _tokens(mask_BT, student_BTT.shape[1])
    return _squared_distance(student_BTT, teacher_BTT, None) / (tokens_B * tokens_B)


# --- parts ------------------------------------------------------------------------------------


def _is_paper(variant: str) -> bool:
    if variant not in ("paper", "reference"):
        raise ValueError(f"variant must be paper or reference, got {variant}")
    return variant == "paper"


def _check_heads(student_BA: Tensor, teacher_BA: Tensor) -> None:
    if student_BA.shape[1] != teacher_BA.shape[1]:
        raise ValueError(
            "heads are compared one by one, so both sides need the same number of them: the "
            f"student has {student_BA.shape[1]}, the teacher {teacher_BA.shape[1]}"
        )


def _tokens(mask_BT: Tensor | None, T: int) -> Tensor | int:
    """Real tokens per example, at least 1: the divisor of a mean."""
    return T if mask_BT is None else mask_BT.sum(-1).clamp(min=1)


def _both_real(mask_BT: Tensor) -> Tensor:
    """B x 1 x T x T: is the query real, and the key?"""
    return mask_BT[:, None, :, None] & mask_BT[:, None, None, :]


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _cleared(x: Tensor, mask_BT: Tensor | None) -> Tensor:
    """B x T x H or B x R x T x D, in float32, with 0 in padded places."""
    if mask_BT is None:
        return _at_least_float32(x)
    real = mask_BT[:, :, None] if x.dim() == 3 else mask_BT[:, None, :, None]
    return _at_least_float32(x).masked_fill(~real, 0.0)


def _unit(x: Tensor) -> Tensor:
    """x scaled to length 1 along its last axis; zeros stay zeros, with gradient finite."""
    x = _at_least_float32(x)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / length.masked_fill(length == 0, 1.0)


def _products(x: Tensor, y: Tensor) -> Tensor:
    """x y^T in the precision that they have, also under autocast."""
    with torch.autocast(x.device.type, enabled=False):
        return x @ y.transpose(-1, -2)


def _distance_per_token(student_BTH: Tensor, teacher_BTH: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Squared distance of the states, summed over H, a mean over real tokens."""
    padded_BT1 = None if mask_BT is None else ~mask_BT[:, :, None]
    sum_B = _squared_distance(student_BTH, teacher_BTH, padded_BT1)
    return sum_B / _tokens(mask_BT, student_BTH.shape[1])


def _squared_distance(student: Tensor, teacher: Tensor, padded: Tensor | None) -> Tensor:
    """Sum of (student - teacher)^2 per example, over what is not padded."""
    if student.shape != teacher.shape:
        shapes = f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        raise ValueError(f"student and teacher must have the same shape, got {shapes}")
    return _SquaredDistance.apply(student, teacher.detach(), padded)


def _refuse_second_derivative() -> None:
    # `once_differentiable` lets one pass whose incoming gradient is a constant, and it is wrong.
    if torch.is_grad_enabled():
        raise RuntimeError("the matching losses have no second derivative (create_graph=True)")


class _SquaredDistance(torch.autograd.Function):
    """A Function of its own: autograd takes twice the time, in passes that write whole tensors."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, padded: Tensor | None) -> Tensor:
        difference = student - teacher
        if padded is not None:
            difference.masked_fill_(padded, 0.0)
        ctx.save_for_backward(difference)
        wide = torch.float64 if difference.dtype == torch.float64 else torch.float32
        axes = tuple(range(1, difference.dim()))
        return torch.linalg.vector_norm(difference, dim=axes, dtype=wide).square()

    @staticmethod
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        _refuse_second_derivative()
        (difference,) = ctx.saved_tensors
        slope_B = (2 * grad_B).to(difference.dtype)
        return difference * slope_B.view(-1, *[1] * (difference.dim() - 1)), None, None


class _SummedKL(torch.autograd.Function):
    """forward_kl of the attention of scores, summed over heads and real queries per example.

    A Function of its own: a few examples at a time stay in the cache, and the gradient, the
    student's attention - the teacher's, needs one tensor where autograd would keep ten.
    """

    @staticmethod
    def forward(
        ctx: Any, student_BATT: Tensor, teacher_BATT: Tensor, mask_BT: Tensor | None
    ) -> Tensor:
        B, A, T, _ = student_BATT.shape
        wanted, slope_BATT = ctx.needs_input_grad[0], torch.empty_like(student_BATT)
        step = max(1, CHUNK.get(student_BATT.device.type, 1 << 26) // max(1, A * T * T))
        sums = []
        for first in range(0, B, step):
            part = slice(first, first + step)
            mask = None if mask_BT is None else mask_BT[part]
            student, teacher = (_only_real(x[part], mask) for x in (student_BATT, teacher_BATT))
            rows = forward_kl(student.reshape(-1, T), teacher.reshape(-1, T))
            sums.append(rows.view(len(student), -1).sum(-1))
            if wanted:
                slope_BATT[part] = student.softmax(-1) - teacher.softmax(-1)
        ctx.save_for_backward(slope_BATT)
        return torch.cat(sums)

    @staticmethod
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        _refuse_second_derivative()
        (slope_BATT,) = ctx.saved_tensors
        return slope_BATT * grad_B.to(slope_BATT.dtype).view(-1, 1, 1, 1), None, None


def _only_real(scores_BATT: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Scores with padded keys excluded (-inf) and padded queries all 0, in float32."""
    if mask_BT is not None:
        filling_B1T1 = torch.where(mask_BT[:, None, :, None], -math.inf, 0.0)
        scores_BATT = torch.where(_both_real(mask_BT), scores_BATT, filling_B1T1)
    return _at_least_float32(scores_BATT)
