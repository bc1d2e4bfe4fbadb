"""Whether kept distributions are a live teacher's: the likeliest by their probabilities, drawn
choices by how likely the teacher finds them.

Axes: N scored rows, K choices, T likeliest choices, D drawn ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stillhouse.core.errors import RunError
from stillhouse.core.types import Batch, Sparse
from stillhouse.numerics.divergences import soften
from stillhouse.signals.distributions import DistributionCache

RELATIVE = 0.06  # how far a kept probability may be from a live one, relative to it: 8 bits' worth
DRAWN = 0.05  # nats that drawn choices may be likelier or less likely than they should be, and
ERRORS = 6.0  # so many standard errors


def check_distributions(
    asked: Callable[[Batch], Tensor],
    cache: DistributionCache,
    data: Any,
    parts: Iterable[np.ndarray],
    *,
    tolerance: float,
) -> str:
    """What was found on the rows of `parts`, a batch each, in words. `asked`: the teacher's scores
    of a batch's N scored rows, N x K. `tolerance`: of probabilities, beyond what their 8 bits
    explain.

    Raises RunError where the kept distributions are another teacher's.
    """
    held = cache.positions(data.keys_N2)
    worst, off, variance, draws = 0.0, 0.0, 0.0, 0
    for rows in parts:
        batch = data.batch(rows)
        if not batch.scored:
            continue
        found = cache.read(held[rows], "tail", torch.device("cpu"))
        scores_NK = soften(asked(batch).cpu()[:, : cache.choices], cache.temperature)
        if not torch.isfinite(scores_NK).all():
            raise RunError("the live teacher's scores are not finite: check its weights")
        logp_NK = scores_NK.float().log_softmax(-1)
        if cache.top:
            theirs_NT = logp_NK.gather(1, found.top_ids_NT.long()).exp()
            excess = (found.top_p_NT - theirs_NT).abs() - RELATIVE * theirs_NT
            worst = max(worst, float(excess.clamp(min=0).max()))
        if cache.drawn:
            differences_N, variances_N = _surprise(logp_NK, found)
            off += float(differences_N.sum()) * cache.drawn
            variance += float(variances_N.sum()) * cache.drawn
            draws += len(differences_N) * cache.drawn
    off, error = abs(off) / max(draws, 1), math.sqrt(variance) / max(draws, 1)
    if not worst <= tolerance:
        raise _another(f"they differ by up to {worst:.3f} (allowed {tolerance})")
    if not off <= (allowed := DRAWN + ERRORS * error):
        raise _another(f"drawn choices are off by {off:.2f} nats (allowed {allowed:.2f})")
    said = []
    if cache.top:
        said.append(f"agree with the live teacher within {worst:.4f}")
    if cache.drawn:
        said.append(f"have draws as likely as the teacher says, within {off:.3f} nats")
    return f"cached distributions {' and '.join(said)}"


def _another(how: str) -> RunError:
    return RunError(
        f"the cached distributions are not this teacher's: {how}: give another --cache, or delete "
        "this one"
    )


def _surprise(
    logp_NK: Float[Tensor, "N K"], kept: Sparse
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """By how much the draws' mean log-probability differs from its expectation, and the variance
    of one independent draw's (of systematic ones it is less)."""
    rest_NK = logp_NK.double().scatter(1, kept.top_ids_NT.long(), -math.inf)
    q_NK = rest_NK.softmax(-1)
    logp_NK = logp_NK.double().clamp(min=-1e4)  # where q is 0: no product with infinity
    mean_N1 = (q_NK * logp_NK).sum(-1, keepdim=True)
    variance_N = (q_NK * (logp_NK - mean_N1).square()).sum(-1)
    drawn_N = logp_NK.gather(1, kept.drawn_ids_ND.long()).mean(-1)
    return drawn_N - mean_N1[:, 0], variance_N
