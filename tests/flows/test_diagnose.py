"""What the report says of inner terms is what the numbers say."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.core.results import Ablation, Gain, Similarity, StageResult
from stillhouse.flows.diagnose import _gradient_shares, _matrix
from stillhouse.flows.diagnose import diagnosis as diagnosis_of

diagnosis = partial(diagnosis_of, metric="accuracy")


def stage(**shares: float) -> StageResult:
    return StageResult(name="inner", data="rows", rows=9, terms=list(shares), steps=5,
                       best_steps=[5], seconds=1.0, gradient_share=shares)  # fmt: skip


def ablation(value: float, low: float, high: float, verdict: Any) -> Ablation:
    gain = Gain(value=value, interval=(low, high), p_value=0.5, seeds=3)
    return Ablation(stage="inner", without="hidden", score=0.8, interval=(0.7, 0.9), seeds=[0.8],
                    gain=gain, verdict=verdict)  # fmt: skip


def test_a_term_that_helped_is_not_complained_of() -> None:
    helped = ablation(0.02, 0.01, 0.03, "helped")
    assert diagnosis([stage(hidden=0.5, attention=0.5)], [helped], None, "helped") == []


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("no difference", "No difference beyond the margin"),
        ("can't tell", "can't tell whether a term helps"),
        ("not comparable", "Not comparable"),
        ("hurt", "A term hurt"),
    ],
)
def test_a_term_that_did_not_help_is_named_with_its_interval(verdict: str, words: str) -> None:
    found = diagnosis([stage(hidden=1.0)], [ablation(-0.01, -0.03, 0.01, verdict)], None, "helped")
    (sentence,) = found
    assert words in sentence
    assert "hidden of inner (−1.0 points, −3.0 to +1.0)" in sentence


def test_a_term_without_weight_is_named() -> None:
    (sentence,) = diagnosis([stage(hidden=0.99, attention_kl=0.01)], [], None, "helped")
    assert "attention kl term has 1.0 % of the gradient" in sentence


def test_response_terms_are_not_inner_ones() -> None:
    assert diagnosis([stage(soft=0.99, gold=0.01)], [], None, "no difference") == []


def test_an_open_verdict_asks_for_the_ablation() -> None:
    (sentence,) = diagnosis([stage(hidden=1.0)], [], None, "no difference")
    assert "don't show" in sentence
    assert "--ablation" in sentence


def test_similarity_is_told_beside_the_baselines() -> None:
    alike = Similarity(tokens=9, student=[[0.1, 0.2], [0.3, 0.75]], baseline=[[0, 0], [0, 0.5]])
    (sentence,) = diagnosis([stage(hidden=1.0)], [], alike, "helped")
    assert "0.75" in sentence
    assert "0.50" in sentence


def logged(run: str, stage: str, **norms: float | None) -> dict[str, Any]:
    terms = {name: {"gradient_norm": norm} for name, norm in norms.items()}
    return {"run": run, "stage": stage, "terms": terms}


def test_shares_are_of_the_students_logged_norms(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [
        logged("student", "a", x=3.0, y=1.0),
        logged("student", "a", x=1.0, y=1.0),
        logged("student", "b", z=None),
        logged("baseline", "a", x=9.0),
        {"run": "student", "event": "evaluate", "score": 0.5},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shares = _gradient_shares(path, ["a", "b"])
    assert shares == {"a": {"x": pytest.approx(0.625), "y": pytest.approx(0.375)}}


def test_the_matrix_is_student_by_teacher() -> None:
    draw = torch.Generator().manual_seed(0)
    states = [torch.randn(50, 4, generator=draw) for _ in range(3)]
    found = _matrix(states[1:], states)
    assert len(found) == 2
    assert len(found[0]) == 3
    assert found[0][1] == pytest.approx(1.0)
    assert found[1][2] == pytest.approx(1.0)
    assert found[0][0] < 0.5
