"""Learning the membership check: it tells the owner's questions from made-up ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from stillhouse.core.errors import DataError
from stillhouse.core.settings import parse
from stillhouse.core.types import Example
from stillhouse.guard.learning import Learned, learn_check
from stillhouse.guard.membership import Head
from stillhouse.guard.model import ServedModel
from stillhouse.guard.settings import LearnConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("learn")
    tiny.save(path / "model", seed=3)
    tiny.reviews(path / "reviews.csv", count=600)
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(tiny.PLAIN[20:], n)) + " ." for n in rng.integers(5, 20, 1200)]
    (path / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    return path


def learnt(folder: Path, out: str, **changes: object) -> Learned:
    values = {"model": str(folder / "model"), "corpus": str(folder / "text.txt"), "lr": 0.01,
              "data": {"path": str(folder / "reviews.csv")}, "cache": str(folder / "cache"),
              "epochs": 3, **changes}  # fmt: skip
    return learn_check(parse(LearnConfig, values), folder / out)


def test_made_up_questions_are_told_from_the_owners(folder: Path) -> None:
    found = learnt(folder, "check")
    wiki, random, shuffled = found.qualities
    assert (wiki.kind, random.kind, shuffled.kind) == ("wiki", "random", "shuffled")
    assert wiki.auc > 0.95
    assert random.auc > 0.9
    assert found.honest <= 0.1
    assert found.head.beyond <= 0.03
    held = json.loads((folder / "check" / "membership.json").read_text())
    assert held["qualities"][0]["auc"] == pytest.approx(wiki.auc)


def test_customers_it_has_met_are_not_odd(folder: Path) -> None:
    rng = np.random.default_rng(1)
    asked = [" ".join(rng.choice(tiny.PLAIN[:20], 25)) for _ in range(900)]
    (folder / "customers.txt").write_text("\n".join(asked[:600]), encoding="utf-8")
    data = {"path": str(folder / "reviews.csv"), "unlabelled": str(folder / "customers.txt")}

    def odd(name: str, **changes: object) -> float:
        found = learnt(folder, name, **changes)
        assert found.qualities[0].auc > 0.95
        model = ServedModel(folder / "model", head=Head.load(folder / name))
        theirs = [t.odd for t in model.answers([Example(text) for text in asked[600:]])]
        return float(np.mean([o is not None and o > 0 for o in theirs]))

    assert odd("strangers") > 0.3
    assert odd("customers", data=data) < 0.1


def test_the_same_seed_learns_the_same(folder: Path) -> None:
    one, two = learnt(folder, "one").head, learnt(folder, "two").head
    assert torch.equal(one.states_TH, two.states_TH)
    assert one.line == two.line
    assert not torch.equal(one.states_TH, learnt(folder, "three", seed=1).head.states_TH)


def test_a_served_model_scores_as_was_learnt(folder: Path) -> None:
    learnt(folder, "served")
    model = ServedModel(folder / "model", head=Head.load(folder / "served"))
    honest = [Example(text) for text, _ in tiny.sentences(200, seed=9)]
    odd = [t.odd for t in model.answers(honest)]
    assert sum(o is not None and o > 0 for o in odd) < 20


def test_features_alone(folder: Path) -> None:
    states = learnt(folder, "last", features="last").head
    assert states.logits_K.numel() == 0
    assert states.reads_states
    logits = learnt(folder, "logits", features="logits").head
    assert logits.states_TH.numel() == 0
    assert not logits.reads_states


def test_too_few_rows(folder: Path) -> None:
    with pytest.raises(DataError, match="too few"):
        learnt(folder, "few", rows=50)
