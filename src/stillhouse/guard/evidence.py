"""What marks prove: tests of marked against control questions, with their size and their power.

Under the null hypothesis the suspect never learned from the marked answers. Which of a client's
kept questions were marked was drawn by the key alone, so given what the suspect and the model say,
every choice of as many of them is as likely, and Fisher's test is exact, for any model, task or
traffic.

Axes: N kept questions, M of them marked, K keys, H numbers of hits, C copies, S strata, U
different copies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

LEAST = 1e-300  # what a p-value is at least
BLOCK = 2**20  # random numbers at a time
COPIES = 1000  # drawn for the power of several strata


@dataclass(frozen=True)
class Table:
    """How many marked and control questions the suspect answers with their keyed wrong answer."""

    marks: int
    hits: int
    controls: int
    chance_hits: int

    @property
    def share(self) -> float:
        return self.hits / self.marks if self.marks else 0.0

    @property
    def chance(self) -> float:
        return self.chance_hits / self.controls if self.controls else 0.0


def table(hit_N: np.ndarray, marked_N: np.ndarray) -> Table:
    """From booleans, a kept question each."""
    return Table(
        int(marked_N.sum()), int(hit_N[marked_N].sum()),
        int((~marked_N).sum()), int(hit_N[~marked_N].sum()),
    )  # fmt: skip


def fisher(*strata: Table) -> float:
    """P(as many hits among the marks, or more), given all hits, no less than 1e-300. Of several
    strata, in which marks were drawn with other odds: of the sum of their hits, exactly (the
    conditional test of Mantel and Haenszel). 1 where there are no marks."""
    hits = sum(each.hits for each in strata)
    if not hits:
        return 1.0
    if len(strata) == 1:  # to the last digit, however small
        (one,) = strata
        total, all_hits = one.marks + one.controls, one.hits + one.chance_hits
        tail = float(stats.hypergeom.sf(one.hits - 1, total, all_hits, one.marks))
        return min(1.0, max(tail, LEAST))
    law = np.ones(1)
    for each in strata:
        total, all_hits = each.marks + each.controls, each.hits + each.chance_hits
        law = np.convolve(
            law, stats.hypergeom.pmf(np.arange(each.marks + 1), total, all_hits, each.marks)
        )
    return min(1.0, max(float(law[hits:].sum()), LEAST))


def permutation(
    strata: Sequence[tuple[np.ndarray, int]], hits: int, rng: np.random.Generator, *, keys: int
) -> float:
    """P(a fresh key finds as many hits): other questions marked, with other wrong answers. strata:
    of each, how likely a question's answer would be the wrong one of a fresh key, and how many are
    marked."""
    found_K = np.zeros(keys, np.int64)
    for likely_N, marks in strata:
        most = max(1, BLOCK // max(1, len(likely_N)))
        for start in range(0, keys if marks else 0, most):
            few = slice(start, min(keys, start + most))
            order_KN = rng.random((few.stop - start, len(likely_N))).argpartition(marks - 1, axis=1)
            drawn_KM = order_KN[:, :marks]
            found_K[few] += (rng.random(drawn_KM.shape) < likely_N[drawn_KM]).sum(1)
    return (1 + int((found_K >= hits).sum())) / (keys + 1)


def difference(*strata: Table, level: float = 0.95) -> tuple[float, tuple[float, float]]:
    """Of the shares of marks and of controls, and its interval: Newcombe 1998 method 10 (from
    Wilson's intervals); of several strata that of Mantel and Haenszel, with the variance of Sato
    1989."""
    whole = [each for each in strata if each.marks and each.controls]
    if not whole:
        return 0.0, (-1.0, 1.0)
    if len(whole) == 1:
        (one,) = whole
        low1, high1 = wilson(one.hits, one.marks, level)
        low2, high2 = wilson(one.chance_hits, one.controls, level)
        p1, p2 = one.share, one.chance
        found = p1 - p2
        return found, (found - math.hypot(p1 - low1, high2 - p2),
                       found + math.hypot(high1 - p1, p2 - low2))  # fmt: skip
    weights = [each.marks * each.controls / (each.marks + each.controls) for each in whole]
    pairs = list(zip(weights, whole, strict=True))
    found = sum(w * (each.share - each.chance) for w, each in pairs) / sum(weights)
    of_p = of_q = 0.0
    for each in whole:
        n1, n0, x1, x0 = each.marks, each.controls, each.hits, each.chance_hits
        n = n1 + n0
        of_p += (n1**2 * x0 - n0**2 * x1 + n1 * n0 * (n0 - n1) / 2) / n**2
        of_q += (x1 * (n0 - x0) + x0 * (n1 - x1)) / (2 * n)
    spread = float(stats.norm.ppf(0.5 + level / 2))
    half = spread * math.sqrt(max(0.0, found * of_p + of_q)) / sum(weights)
    return found, (max(-1.0, found - half), min(1.0, found + half))


def wilson(hits: int, of: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share."""
    found = stats.binomtest(hits, of).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)


def power(*strata: Table, learned: float, alpha: float) -> float:
    """The probability that a copy is found out which has learned a share of its marks, and else
    hits as it does controls, at a p-value of `alpha`. Exact but for taking the controls' hits as
    they came; of several strata from a thousand drawn copies."""
    whole = [each for each in strata if each.marks]
    if not whole:
        return 0.0
    shares = [learned + (1 - learned) * each.chance for each in whole]
    if len(whole) == 1:
        (one,), (share,) = whole, shares
        hits_H = np.arange(1, one.marks + 1)
        total = one.marks + one.controls
        p_H = stats.hypergeom.sf(hits_H - 1, total, hits_H + one.chance_hits, one.marks)
        enough_H = np.flatnonzero(p_H <= alpha)
        return float(stats.binom.sf(enough_H[0], one.marks, share)) if len(enough_H) else 0.0
    rng = np.random.default_rng(0)  # whoever reckons anew draws the same copies
    drawn_CS = rng.binomial([each.marks for each in whole], shares, (COPIES, len(whole)))
    found_US, times_U = np.unique(drawn_CS, axis=0, return_counts=True)
    out = 0
    for hits_S, times in zip(found_US, times_U, strict=True):
        tables = [replace(each, hits=int(hits)) for each, hits in zip(whole, hits_S, strict=True)]
        out += int(times) * (fisher(*tables) <= alpha)
    return out / COPIES


def conditional(hits: int, wrong: int, choices: int) -> float:
    """P(as many of the suspect's wrong answers to marks are the keyed ones), where the key chose
    among choices - 1: of three choices and more, evidence that needs no controls."""
    if choices < 3 or not wrong:
        return 1.0
    return float(stats.binom.sf(hits - 1, wrong, 1 / (choices - 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted for being many, in their order (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    found, worst = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        found[i] = worst
    return found
