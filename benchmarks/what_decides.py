"""How often an open verdict is decided once as many more seeds or rows are there as were named.

    python benchmarks/what_decides.py     (a minute of one core)

Two recipes whose models are right on 85 % of rows on average, one better by the true gain. Runs
whose verdict is "can't tell" get the seeds, or the rows, that `gains.what_would_decide` names, and
are judged again. Axes: S seeds, N rows.
"""

from __future__ import annotations

import sys

import numpy as np
from scipy.special import ndtr

from stillhouse.numerics import gains

RUNS, MARGIN, RIGHT = 400, 0.01, 0.85
COMMON = 0.8  # of a row's difficulty, in all models
MOST_ROWS = 30_000  # further ones are not simulated
SETTINGS = (  # seeds, rows, true gain, seed noise
    (2, 1000, 0.03, 0.005), (2, 5000, 0.03, 0.01), (3, 1000, 0.02, 0.01), (3, 1000, 0.03, 0.01),
    (3, 5000, 0.01, 0.003), (5, 872, 0.02, 0.013), (5, 1000, 0.0, 0.005),
)  # fmt: skip


def answered(rates_S2: np.ndarray, rows_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Student's minus baseline's right answers, S x N."""
    own_2SN = rng.normal(size=(2, len(rates_S2), len(rows_N)))
    hard_2SN = ndtr(COMMON * rows_N + np.sqrt(1 - COMMON**2) * own_2SN)
    mine_SN, theirs_SN = (hard_2SN < rates_S2.T[:, :, None]).astype(float)
    return mine_SN - theirs_SN


def gain(differences_SN: np.ndarray) -> gains.PairedGain:
    """As stats.paired_gain has it, with the covariance in closed form."""
    seeds, rows = differences_SN.shape
    covariance_SS = np.cov(differences_SN).reshape(seeds, seeds) / rows
    return gains.gain_from(differences_SN.mean(1), covariance_SS, rows=rows, counted=rows)


def decided(differences_SN: np.ndarray) -> bool:
    return gains.verdict(gain(differences_SN), MARGIN) != "can't tell"


def kept(
    seeds: int, rows: int, true: float, noise: float, rng: np.random.Generator
) -> tuple[list[bool], list[bool]]:
    """Of each open run whether the seeds, and whether the rows, decided it."""
    by_seeds: list[bool] = []
    by_rows: list[bool] = []

    def rates(count: int) -> np.ndarray:
        return rng.normal([RIGHT + true, RIGHT], noise, size=(count, 2))

    for _ in range(RUNS):
        rates_S2, rows_N = rates(seeds), rng.normal(size=rows)
        first_SN = answered(rates_S2, rows_N, rng)
        if decided(first_SN):
            continue
        needed = gains.what_would_decide(gain(first_SN).spread, MARGIN)  # pyright: ignore
        if needed.seeds is not None:
            more_SN = answered(rates(needed.seeds), rows_N, rng)
            by_seeds.append(decided(np.concatenate([first_SN, more_SN])))
        if needed.rows is not None and needed.rows <= MOST_ROWS:
            more_SN = answered(rates_S2, rng.normal(size=needed.rows), rng)
            by_rows.append(decided(np.concatenate([first_SN, more_SN], 1)))
    return by_seeds, by_rows


def main() -> None:
    rng = np.random.default_rng(0)
    for setting in SETTINGS:
        found = (f"{np.mean(each):.0%} of {len(each)}" for each in kept(*setting, rng))
        sys.stdout.write(f"{setting}: seeds decided {', rows '.join(found)}\n")


if __name__ == "__main__":
    main()
