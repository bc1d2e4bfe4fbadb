"""Part of a teacher's distribution over a vocabulary: what is taken of it, and what a student
loses against it.

Of each row its likeliest choices are kept with their probabilities, and choices drawn from the
rest, each standing for an equal share of it. The student's side is always exact: every choice
that is not named falls into one class, the rest. So each estimator here is a divergence of
`divergences.py` over a few classes, never negative for the reason given there.

Axes: N scored rows, K choices, T likeliest choices, D drawn ones, U uniform numbers, C classes,
B blocks of W choices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from stillhouse.numerics.divergences import DIVERGENCES, EXCLUDED, soften

CHUNK = 1 << 22  # elements of scores that are worked on at once
BLOCK = 128  # choices whose running sum is taken only where one of them is drawn
REFUSED = {
    "logit_mse": "compares scores, and of a sparse teacher only probabilities are known",
    "decoupled": "needs the teacher's distribution among all other choices",
}
Chosen = tuple[Tensor, Tensor, Tensor, Tensor]  # ids and p of the top, p of the rest, drawn ids


def choose(
    logp_NK: Float[Tensor, "N K"],
    uniform_NU: Float[Tensor, "N U"],
    *,
    top: int,
    drawn: int,
) -> tuple[Int[Tensor, "N T"], Float[Tensor, "N T"], Float[Tensor, " N"], Int[Tensor, "N D"]]:
    """Of each row: the `top` likeliest choices, likeliest first, and their probabilities; the
    rest's probability; and `drawn` choices of the rest, in proportion to theirs.

    Each drawn choice stands for an equal share of the rest, so what is kept adds up to 1 and is
    in expectation the whole distribution. `uniform_NU` are numbers in [0, 1), and all that is
    random: one a row draws at equal steps (systematic sampling: a choice is drawn as often as its
    share of the draws says, rounded up or down); `drawn` of them a row draw independently, with
    top = 0 Anshumann et al. 2025 (RS-KD, arXiv 2503.16870) sec. 3. Raises ValueError for
    another number of them, or for more choices than there are.
    """
    K, U = logp_NK.shape[1], uniform_NU.shape[1]
    if top < 0 or drawn < 0 or top + drawn == 0 or top > K:
        raise ValueError(f"top must be 0 to {K} and drawn >= 0, not both 0; got {top} and {drawn}")
    if drawn and U not in (1, drawn):
        raise ValueError(f"1 or {drawn} uniform numbers a row draw {drawn} choices, got {U}")
    step = max(1, CHUNK // K)
    parts = [
        _choose(logp, uniform, top, drawn)
        for logp, uniform in zip(logp_NK.split(step), uniform_NU.split(step), strict=True)
    ]
    ids_NT, p_NT, tail_N, drawn_ND = (torch.cat(found) for found in zip(*parts, strict=True))
    return ids_NT, p_NT, tail_N, drawn_ND


def _choose(logp_NK: Tensor, uniform_NU: Tensor, top: int, drawn: int) -> Chosen:
    logp_NT, ids_NT = logp_NK.topk(top, dim=-1)
    rest_NK = logp_NK.exp().scatter_(-1, ids_NT, 0.0)
    # In float64: a sum over a vocabulary in float32 is off by more than a rare choice's share.
    blocks_NBW = pad(rest_NK, (0, -rest_NK.shape[1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    ends_NB = blocks_NBW.sum(-1).cumsum(-1, dtype=torch.float64)
    p_NT, tail_N1 = logp_NT.double().exp(), ends_NB[:, -1:].contiguous()
    whole_N1 = p_NT.sum(-1, keepdim=True) + tail_N1
    p_NT, tail_N = (p_NT / whole_N1).float(), (tail_N1 / whole_N1).squeeze(-1).float()
    if not drawn:
        return ids_NT, p_NT, tail_N, ids_NT[:, :0]
    at_ND = uniform_NU.double()
    if uniform_NU.shape[1] == 1:
        at_ND = (torch.arange(drawn, device=logp_NK.device) + at_ND) / drawn
    return ids_NT, p_NT, tail_N, _found(blocks_NBW, ends_NB, at_ND * tail_N1).sort(-1).values


def _found(blocks_NBW: Tensor, ends_NB: Tensor, at_ND: Tensor) -> Tensor:
    """The choices in whose share of the running sum the points `at_ND` lie: first the block, whose
    sum goes up to `ends_NB`, then the place in it, so that few running sums are taken."""
    block_ND = _first_above(ends_NB, at_ND)
    begins_NB = torch.cat([torch.zeros_like(ends_NB[:, :1]), ends_NB[:, :-1]], -1)
    index_NDW = block_ND.unsqueeze(-1).expand(-1, -1, blocks_NBW.shape[-1])
    inside_NDW = blocks_NBW.gather(1, index_NDW).cumsum(-1, dtype=torch.float64)
    left_ND1 = (at_ND - begins_NB.gather(-1, block_ND)).unsqueeze(-1)
    return block_ND * blocks_NBW.shape[-1] + _first_above(inside_NDW, left_ND1).squeeze(-1)


def _first_above(sums: Tensor, at: Tensor) -> Tensor:
    """Where rising sums first are above a point, at most where they are complete: rounding may
    put a point at their very end, after which no choice has a share."""
    last = torch.searchsorted(sums, sums[..., -1:].contiguous())
    return torch.minimum(torch.searchsorted(sums, at.contiguous(), right=True), last)


def divergence(
    name: str,
    student_NK: Float[Tensor, "N K"],
    top_ids_NT: Int[Tensor, "N T"],
    top_p_NT: Float[Tensor, "N T"],
    tail_N: Float[Tensor, " N"],
    drawn_ids_ND: Int[Tensor, "N D"],
    *,
    estimator: str,
    temperature: float,
    **settings: float,
) -> Float[Tensor, " N"]:
    """A divergence (its name in DIVERGENCES, its beta or alpha in `settings`) between a student's
    scores, softened by `temperature` here, and a sparse teacher, per row, nats.

    tail: between T + 1 classes, the likeliest choices and all others as one: at most the dense
    value (data processing), and what the student thinks of the others' order is left as it is.
    sampled: KL(p_hat || student), where p_hat has the drawn choices for the rest. Its gradient is
    student - p_hat, in expectation the dense one's; the value is above the dense one's, by what
    p_hat's entropy lacks. renormalised: KL(top made to add up to 1 || student), which is biased
    by all that was left out; here to compare with. A place of the top with p 0 is not used.

    Raises ValueError for a divergence or an estimator that can't be had.
    """
    _check(name, estimator, top_ids_NT.shape[1], drawn_ids_ND.shape[1])
    tail_N1 = tail_N.unsqueeze(-1)
    if estimator == "tail":
        ids_NC, p_NC, rest_N1 = top_ids_NT, top_p_NT, tail_N1
    elif estimator == "sampled":
        once_ND, share_ND = _counted(drawn_ids_ND, tail_N1)
        ids_NC, p_NC = torch.cat([top_ids_NT, once_ND], -1), torch.cat([top_p_NT, share_ND], -1)
        rest_N1 = torch.zeros_like(tail_N1)
    else:
        ids_NC, p_NC = top_ids_NT, top_p_NT / top_p_NT.sum(-1, keepdim=True)
        rest_N1 = torch.zeros_like(tail_N1)
    used_NC = p_NC > 0
    student_NC = classes(student_NK, ids_NC, used_NC, temperature)
    teacher_NC = torch.cat([p_NC, rest_N1], -1).to(student_NC.dtype).log()
    return DIVERGENCES[name](student_NC, teacher_NC, **settings)


def _check(name: str, estimator: str, top: int, drawn: int) -> None:
    if name not in DIVERGENCES:
        raise ValueError(f"unknown divergence {name!r} (known: {', '.join(sorted(DIVERGENCES))})")
    if name in REFUSED:
        raise ValueError(f"{name} can't be had from a sparse teacher: it {REFUSED[name]}")
    if estimator not in (known := ("tail", "sampled", "renormalised")):
        raise ValueError(f"unknown estimator {estimator!r} (known: {', '.join(known)})")
    if estimator != "tail" and name != "forward_kl":
        raise ValueError(
            f"estimator {estimator!r} gives forward_kl only, not {name}: nothing else is linear "
            "in the teacher's probabilities; use 'tail'"
        )
    if estimator == "sampled" and not drawn:
        raise ValueError("estimator 'sampled' needs drawn choices, and none were kept")
    if estimator != "sampled" and not top:
        raise ValueError(f"estimator {estimator!r} needs the likeliest choices: none were kept")


def _counted(ids_ND: Tensor, tail_N1: Tensor) -> tuple[Tensor, Tensor]:
    """Each drawn choice once, with its shares added up; places that are over have p 0."""
    sorted_ND = ids_ND.sort(-1).values
    new_ND = torch.ones_like(sorted_ND, dtype=torch.bool)
    new_ND[:, 1:] = sorted_ND[:, 1:] != sorted_ND[:, :-1]
    place_ND = new_ND.cumsum(-1) - 1
    share_ND = (tail_N1 / ids_ND.shape[1]).expand(ids_ND.shape)
    shares_ND = torch.zeros_like(share_ND).scatter_add(-1, place_ND, share_ND)
    return torch.zeros_like(sorted_ND).scatter(-1, place_ND, sorted_ND), shares_ND


def classes(
    student_NK: Float[Tensor, "N K"],
    ids_NC: Int[Tensor, "N C"],
    used_NC: Tensor,
    temperature: float,
) -> Float[Tensor, "N C+1"]:
    """Scores / temperature of the named choices, and last of all others as one class (the
    logarithm of their summed exponentials); -inf where a name is not used.

    At least float32. The backward pass makes one tensor of the scores' size, its result.
    """
    found_NC: Tensor = _Classes.apply(student_NK, ids_NC, used_NC, temperature)
    return found_NC


class _Classes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student_NK: Tensor, ids_NC: Tensor, used_NC: Tensor, temperature: float
    ) -> Tensor:
        rest_N1 = torch.cat(
            [
                _others(*part, temperature).logsumexp(-1, keepdim=True)
                for part in _parts(student_NK, ids_NC, used_NC)
            ]
        )
        named_NC = soften(student_NK.gather(-1, ids_NC).to(rest_N1.dtype), temperature)
        ctx.save_for_backward(student_NK, ids_NC, used_NC, rest_N1)
        ctx.temperature = temperature
        return torch.cat([named_NC.masked_fill(~used_NC, EXCLUDED), rest_N1], -1)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_NC: Tensor
    ) -> tuple[Tensor, None, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError("a sparse divergence has no second derivative (create_graph=True)")
        student_NK, ids_NC, used_NC, rest_N1 = ctx.saved_tensors
        rest_N1 = rest_N1.masked_fill(rest_N1 == EXCLUDED, 0.0)  # no others: all are e^-inf
        grad_NC = grad_NC / ctx.temperature
        named_NC = grad_NC[:, :-1].masked_fill(~used_NC, 0.0)
        slope_NK = torch.empty_like(student_NK)
        row = 0
        for part in _parts(student_NK, ids_NC, used_NC):
            rows = slice(row, row + len(part[0]))
            row = rows.stop
            slope = _others(*part, ctx.temperature).sub_(rest_N1[rows]).exp_()
            slope = slope.mul_(grad_NC[rows, -1:]).scatter_add_(-1, part[1], named_NC[rows])
            slope_NK[rows] = slope
        return slope_NK, None, None, None


def _parts(
    student_NK: Tensor, ids_NC: Tensor, used_NC: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    step = max(1, CHUNK // student_NK.shape[1])
    return zip(student_NK.split(step), ids_NC.split(step), used_NC.split(step), strict=True)


def _others(student_NK: Tensor, ids_NC: Tensor, used_NC: Tensor, temperature: float) -> Tensor:
    """The student's softened scores, a copy, with the named choices excluded.

    By adding -inf or 0, so that an unused name may repeat a used one."""
    wide = torch.float64 if student_NK.dtype == torch.float64 else torch.float32
    scores_NK = soften(student_NK.to(wide), temperature)
    out_NC = torch.zeros(ids_NC.shape, dtype=wide, device=ids_NC.device)
    return scores_NK.scatter_add_(-1, ids_NC, out_NC.masked_fill_(used_NC, -math.inf))
