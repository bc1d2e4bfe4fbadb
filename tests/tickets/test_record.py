"""What a search says of itself: the asked ticket first, and what to doubt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from stillhouse.core.progress import Silent
from stillhouse.core.results import Gain, Verdict
from stillhouse.core.settings import parse
from stillhouse.core.ticket_results import Kind, Level
from stillhouse.models.load import load_classifier
from stillhouse.tickets.config import TicketsConfig
from stillhouse.tickets.record import sentence
from stillhouse.tickets.runs import run_tickets


def level(
    kind: Kind, number: int, score: float, verdict: Verdict | None = None, *, seeds: int = 3
) -> Level:
    gain = None
    if kind != "dense":
        low, high = score - 0.9 - 0.1, score - 0.9 + 0.02
        gain = Gain(value=score - 0.9, interval=(low, high), p_value=0.5, seeds=seeds)
    return Level(
        kind=kind, round=number, remaining=1 - 0.3 * number, kept=100, score=score,
        interval=(score, score), seeds=[score] * seeds, metrics={"accuracy": score}, gain=gain,
        verdict=verdict,
    )  # fmt: skip


DENSE = level("dense", 0, 0.9)


def test_the_asked_ticket_leads_and_is_worse_where_it_is() -> None:
    last = level("ticket", 2, 0.7, "hurt")
    levels = [DENSE, level("ticket", 1, 0.89, "can't tell"), last]
    assert sentence(levels, "accuracy", 2) == (
        "With 40.0 % of the prunable weights the ticket scores 0.700 in accuracy, the dense model "
        "0.900: -20.0 points, 95 % interval -30.0 to -18.0: worse. The smallest that is not seen "
        "to be worse has 70.0 % (0.890, can't tell)."
    )
    none = [DENSE, level("ticket", 1, 0.8, "hurt"), last]
    assert "No larger ticket" in sentence(none, "accuracy", 2)


@pytest.mark.parametrize(
    ("verdict", "says"),
    [("no difference", "no difference"), ("helped", "better"), ("can't tell", "can't tell")],
)
@pytest.mark.parametrize(("seeds", "caveat"), [(1, ", these two models only"), (2, "")])
def test_a_ticket_as_good_is_said_to_be(
    verdict: Verdict, says: str, seeds: int, caveat: str
) -> None:
    found = level("ticket", 1, 0.9, verdict, seeds=seeds)
    said = sentence([DENSE, found], "accuracy", 1)
    assert said.endswith(f"+2.0: {says}{caveat}.")
    assert "smallest" not in said


@pytest.mark.parametrize(("random", "told"), [(0.6, False), (0.9, True)])
def test_a_random_mask_that_does_as_well_is_pointed_out(random: float, told: bool) -> None:
    levels = [DENSE, level("ticket", 1, 0.9, "no difference"), level("random", 1, random, "hurt")]
    said = sentence(levels, "accuracy", 1)
    assert ("no less, so these data don't show that the ticket's own is worth" in said) is told


def searched(tmp_path: Path, **prune: Any) -> list[str]:
    tiny.save(tmp_path / "model")
    model: Any = load_classifier(str(tmp_path / "model"))
    with torch.no_grad():
        model.bert.pooler.dense.weight.mul_(0.05)
        model.bert.pooler.dense.bias.zero_()
    model.save_pretrained(tmp_path / "model")
    values = {
        "model": str(tmp_path / "model"),
        "data": {"path": str(tiny.reviews(tmp_path / "reviews.csv")), "max_length": 32},
        "training": {"steps": 24, "batch_size": 16, "lr": 5e-3, "precision": "float32"},
        "prune": {"sparsity": 0.5, "rounds": 1, **prune},
        "evaluation": {"seeds": [0], "controls": [], "resamples": 20},
        "cache": str(tmp_path / "cache"),
    }
    told: list[str] = []
    progress = Silent()
    progress.note = told.append  # type: ignore[method-assign]
    run = run_tickets(parse(TicketsConfig, values), tmp_path / "run", progress=progress)
    assert set(run.record.warnings) <= set(told)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert ("Before you rely on this" in page) == bool(run.record.warnings)
    return run.record.warnings


def test_an_emptied_matrix_and_a_model_that_sees_nothing_are_told(tmp_path: Path) -> None:
    warnings = "\n".join(searched(tmp_path, floor=0))
    assert "nothing is left of bert.pooler.dense.weight" in warnings
    assert "the ticket of round 1 answers every reported row the same" in warnings
    assert "the dense" not in warnings


def test_a_matrix_at_the_floor_is_told(tmp_path: Path) -> None:
    warnings = "\n".join(searched(tmp_path))
    assert (
        "bert.pooler.dense.weight keeps 5.0 % of its weights only because of prune.floor"
        in warnings
    )
    assert "nothing is left" not in warnings
