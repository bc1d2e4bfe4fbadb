"""The verdict on simulated runs: how often each word is said where the true gain is known.

command    python benchmarks/verdicts.py --out verdicts
hardware   one CPU core, about 5 minutes; see docs/verdict.md for the machine
result     see docs/verdict.md

A model's true accuracy is that of its recipe plus seed noise (a normal deviate, the same size for
students and baselines). Rows differ in difficulty: part of it all models share, part one recipe's
models share, the rest is each model's own, so that two models are right on mostly the same rows.
A study trains both recipes with so many seeds on fresh rows, and judges them as a run does: by
`gains.gain_from` and `gains.verdict`. The covariance that a run bootstraps is known exactly for
accuracy, a mean over rows, and is taken as such; a test holds it against `stats.paired_gain`.

Axes: S seeds, N rows.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from stillhouse.core.rundir import write_text
from stillhouse.core.seeding import generator
from stillhouse.numerics import gains

GAINS = (0.0, 0.5, 1.0, 3.0)  # points
SEEDS = (1, 2, 3, 4, 5)
ROWS = (200, 872, 1000, 5000)
NOISE = (0.3, 1.3, 3.0)  # points, standard deviation of a model's accuracy over seeds
ACCURACY = 0.85
ALL, RECIPE, MODEL = 0.6, 0.1, 0.3  # shares of a row's difficulty: all models', a recipe's, one's
MARGIN = 0.01
STUDIES = {True: 10_000, False: 1_000}  # without a gain, and with one
WORDS = ("helped", "hurt", "no difference", "can't tell")


def study(
    rng: np.random.Generator, *, gain: float, seeds: int, rows: int, noise: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which rows the students and the baselines answer right, S x N each; `gain` and `noise` in
    points."""
    shared_N = np.sqrt(ALL) * rng.standard_normal(rows, dtype=np.float32)

    def recipe(lead: float) -> NDArray[np.bool_]:
        own_N = shared_N + np.sqrt(RECIPE) * rng.standard_normal(rows, dtype=np.float32)
        accuracy_S1 = ACCURACY + (lead + noise * rng.standard_normal((seeds, 1))) / 100
        level_S1 = ndtri(np.clip(accuracy_S1, 0.001, 0.999)).astype(np.float32)
        chance_SN = rng.standard_normal((seeds, rows), dtype=np.float32)
        return np.sqrt(np.float32(MODEL)) * chance_SN + own_N + level_S1 > 0

    return recipe(gain / 2), recipe(-gain / 2)


def judged(student_SN: NDArray[np.bool_], baseline_SN: NDArray[np.bool_]) -> gains.PairedGain:
    """`stats.paired_gain` of accuracy, with the covariance that its bootstrap estimates."""
    rows = student_SN.shape[1]
    difference_SN = student_SN.astype(np.float32) - baseline_SN.astype(np.float32)
    gains_S = difference_SN.mean(1, dtype=np.float64)
    product_SS = (difference_SN @ difference_SN.T).astype(np.float64) / rows
    covariance_SS = (product_SS - np.outer(gains_S, gains_S)) / rows
    return gains.gain_from(gains_S, covariance_SS, rows=rows, counted=rows)


def shares(*, gain: float, seeds: int, rows: int, noise: float, studies: int) -> dict[str, Any]:
    """How often each word is said of runs like this, and how often the interval leaves out 0."""
    rng = generator(0, "verdicts", str(gain), seeds, rows, str(noise))
    said: Counter[str] = Counter()
    excluded = covered = 0
    for _ in range(studies):
        found = judged(*study(rng, gain=gain, seeds=seeds, rows=rows, noise=noise))
        said[gains.verdict(found, MARGIN)] += 1
        excluded += found.interval[0] > 0 or found.interval[1] < 0
        covered += found.interval[0] <= gain / 100 <= found.interval[1]
    return {
        "gain": gain, "seeds": seeds, "rows": rows, "noise": noise, "studies": studies,
        **{word: said[word] / studies for word in WORDS},
        "excludes_0": excluded / studies, "covers": covered / studies,
    }  # fmt: skip


def table(found: Sequence[dict[str, Any]]) -> str:
    """One line a size of seed noise, number of rows and of seeds; a cell a true gain."""
    cells = {(f["noise"], f["rows"], f["seeds"], f["gain"]): f for f in found}
    head = "".join(f" true gain {gain:g} |" for gain in GAINS)
    lines = [f"| seed noise | test rows | seeds |{head}", "|---" * (3 + len(GAINS)) + "|"]
    for noise, rows, seeds in itertools.product(NOISE, ROWS, SEEDS):
        each = [cells[noise, rows, seeds, gain] for gain in GAINS]
        told = " | ".join(" / ".join(f"{100 * f[word]:.1f}" for word in WORDS) for f in each)
        lines.append(f"| {noise:g} | {rows:,} | {seeds} | {told} |")
    return "\n".join(lines) + "\n"


def worst(found: Sequence[dict[str, Any]]) -> str:
    """How often helped or hurt is said at no gain, and how often an interval leaves 0 out."""
    lines = []
    for name, chosen in (("one seed", (1,)), ("two seeds or more", SEEDS[1:])):
        none = [f for f in found if f["gain"] == 0 and f["seeds"] in chosen]
        wrong = [100 * (f["helped"] + f["hurt"]) for f in none]
        zero = [100 * f["excludes_0"] for f in none]
        lines.append(
            f"{name}, no gain: helped or hurt in {min(wrong):.1f} to {max(wrong):.1f} % of runs; "
            f"the interval leaves out 0 in {min(zero):.1f} to {max(zero):.1f} %"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", type=float, default=1.0, help="of the studies, for a quick look")
    asked = parser.parse_args()
    found = [
        shares(
            gain=gain, seeds=seeds, rows=rows, noise=noise,
            studies=max(1, round(asked.part * STUDIES[gain == 0])),
        )
        for noise, rows, seeds, gain in itertools.product(NOISE, ROWS, SEEDS, GAINS)
    ]  # fmt: skip
    asked.out.mkdir(parents=True, exist_ok=True)
    write_text(asked.out / "verdicts.json", json.dumps(found, indent=1) + "\n")
    write_text(asked.out / "verdicts.md", table(found) + "\n" + worst(found))
    print(table(found) + "\n" + worst(found))


if __name__ == "__main__":
    main()
