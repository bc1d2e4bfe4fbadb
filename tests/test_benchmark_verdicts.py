"""The simulation of verdicts judges as a run does, and its runs are what they are said to be."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from stillhouse.numerics import gains, stats

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "verdicts.py"


@pytest.fixture(scope="module")
def verdicts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verdicts_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def share_right(pred_N: np.ndarray, gold_N: np.ndarray) -> float:
    return np.count_nonzero(pred_N == gold_N) / len(gold_N)


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_the_exact_covariance_judges_as_the_bootstrap_does(
    verdicts: ModuleType, seeds: int
) -> None:
    rng, alike = np.random.default_rng(seeds), 0
    for number in range(20):
        sides = verdicts.study(rng, gain=number % 4, seeds=seeds, rows=200, noise=1.3)
        quick = verdicts.judged(*sides)
        whole = stats.paired_gain(
            share_right, *(side.astype(int) for side in sides), np.ones(200, int),
            rng=np.random.default_rng(0), resamples=600,
        )  # fmt: skip
        assert whole.value == pytest.approx(quick.value)
        widths = [found.interval[1] - found.interval[0] for found in (quick, whole)]
        assert widths[1] == pytest.approx(widths[0], rel=0.12)
        alike += gains.verdict(quick, 0.01) == gains.verdict(whole, 0.01)
    assert alike >= 18


def test_simulated_runs_have_the_gain_and_the_noise_they_are_said_to(verdicts: ModuleType) -> None:
    rng = np.random.default_rng(0)
    gains, levels = [], []
    for _ in range(60):
        mine, theirs = verdicts.study(rng, gain=3.0, seeds=5, rows=4_000, noise=2.0)
        gains.append(mine.mean() - theirs.mean())
        levels.append(mine.mean(1).std(ddof=1))
    assert np.mean(gains) == pytest.approx(0.03, abs=0.004)
    assert np.mean(levels) == pytest.approx(0.02, abs=0.003)


def test_no_gain_is_seldom_called_one(verdicts: ModuleType) -> None:
    found = verdicts.shares(gain=0.0, seeds=3, rows=200, noise=1.3, studies=400)
    assert found["helped"] + found["hurt"] <= 0.06
    assert sum(found[word] for word in verdicts.WORDS) == pytest.approx(1)
    alone = verdicts.shares(gain=0.0, seeds=1, rows=872, noise=1.3, studies=200)
    assert alone["helped"] + alone["hurt"] > 0.2, "one seed says nothing of the recipe"
