"""What is chosen where a fine-tuning says neither how long nor at what rate."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stillhouse as sh
import tiny
from stillhouse.core.config import FinetuneConfig, FinetuneTraining
from stillhouse.core.errors import UsageError
from stillhouse.core.progress import Silent
from stillhouse.core.settings import parse, read_yaml
from stillhouse.core.types import NO_LABEL, Batch, StudentOutput
from stillhouse.flows.gold import prepare_gold
from stillhouse.training.defaults import Facts, asked, epochs_for, rate_for, settle, told
from stillhouse.training.response import WeightedClasses, class_weights

FACTS = Facts(rows=962, classes=77, per_epoch=31, validation=107, width=384, new_head=True)


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize(
    ("classes", "per_epoch", "epochs"),
    [
        (2, 5, 30),  # 400 steps would be 80 passes over 144 rows
        (2, 57, 8),  # 8 times 57 is the first multiple over 400
        (2, 563, 3),  # 18,000 rows: 3 passes are over 400 steps
        (77, 31, 25),  # 10 steps a class: 770
        (150, 85, 18),
        (1, 100, 4),  # a regression's value
    ],
)
def test_few_rows_and_many_classes_are_passed_over_more_often(
    classes: int, per_epoch: int, epochs: float
) -> None:
    assert epochs_for(replace(FACTS, classes=classes, per_epoch=per_epoch)) == epochs


def test_a_head_that_is_there_needs_no_more_than_three_passes() -> None:
    assert epochs_for(replace(FACTS, new_head=False)) == 3


@pytest.mark.parametrize(
    ("width", "classes", "rate"),
    [
        (768, 2, 5e-5),
        (768, 77, 5e-5),
        (384, 2, 1e-4),
        (384, 19, 1e-4),
        (384, 20, 2e-4),
        (312, 2, 1.2e-4),
        (32, 2, 5e-4),  # no more than that
        (1024, 2, 2.8e-5),
        (1024, 150, 2.8e-5),
        (4096, 2, 1e-5),
    ],
)
def test_the_rate_falls_with_the_width_and_rises_with_the_classes(
    width: int, classes: int, rate: float
) -> None:
    assert rate_for(width, classes) == rate


def test_the_best_weights_are_kept_where_enough_rows_judge() -> None:
    assert settle(FinetuneTraining(), FACTS).select == "best"
    assert settle(FinetuneTraining(), replace(FACTS, validation=100)).select == "best"
    assert settle(FinetuneTraining(), replace(FACTS, validation=99)).select == "last"


def test_what_is_given_stays() -> None:
    given = FinetuneTraining(epochs=2.0, select="best", batch_size=8)
    settled = settle(given, FACTS)
    assert (settled.epochs, settled.lr, settled.select) == (2.0, 2e-4, "best")
    assert settled.batch_size == 8
    assert asked(given) == ["lr"]
    assert asked(settled) == []
    assert asked(FinetuneTraining(steps=10)) == ["lr", "select"], "steps end it, not epochs"


def test_spans_and_running_text_train_as_ever() -> None:
    settled = settle(FinetuneTraining(), None)
    assert (settled.epochs, settled.lr, settled.select) == (3.0, 5e-5, "best")


def test_it_is_said_in_a_line() -> None:
    chosen = asked(FinetuneTraining())
    assert told(settle(FinetuneTraining(), FACTS), chosen, FACTS) == (
        "25 epochs (775 steps), lr 0.0002, the best weights kept: chosen for 962 rows of 77 "
        "classes, 107 held-out rows and a model 384 wide"
    )


def test_auto_is_a_setting_like_others() -> None:
    config = parse(FinetuneConfig, {"model": "m", "data": {"path": "d"}})
    assert (config.training.epochs, config.training.lr) == ("auto", "auto")
    again = parse(FinetuneConfig, json.loads(json.dumps(config.model_dump(mode="json"))))
    assert again == config
    with pytest.raises(UsageError, match=r"training\.lr"):
        parse(FinetuneConfig, {"model": "m", "data": {"path": "d"}, "training": {"lr": "fast"}})
    with pytest.raises(UsageError, match=r"training\.epochs"):  # nothing chooses it there
        tiny.config(Path("t"), Path("d"), Path("c"), training={"epochs": "auto"})


def tuned(root: Path, name: str, notes: Silent | None = None, /, **settings: Any) -> sh.Run:
    """A fine-tuning on 60 short rows of two classes."""
    if not (root / "base").exists():
        tiny.save(root / "base", "bert", layers=1, labels=["a", "b", "c"])
        tiny.reviews(root / "reviews.csv", 60)
    return sh.finetune(
        root / "base",
        {"path": str(root / "reviews.csv"), "max_length": 32},
        out=root / name,
        training={"precision": "float32", **settings},
        resamples=20,
        cache=str(root / "cache"),
        progress=notes or Silent(),
    )


def test_a_run_says_what_it_chose(tmp_path: Path) -> None:
    notes = Notes()
    run = tuned(tmp_path, "run", notes)
    rows = run.record.data.labelled
    per_epoch = math.ceil(rows / 32)
    steps = 30 * per_epoch
    held = json.loads((run.out / "manifest.json").read_text())["auto"]["training"]
    assert held == {"epochs": 30.0, "lr": 5e-4, "select": "last"}
    assert any(f"30 epochs ({steps} steps), lr 0.0005, the last weights" in n for n in notes.said)
    assert run.record.student.best_steps == [steps]
    assert read_yaml(run.out / "config.yaml")["training"]["epochs"] == "auto"


def test_the_same_settings_given_make_the_same_model(tmp_path: Path) -> None:
    """What is chosen is settled before the training, and changes nothing else."""
    chosen = tuned(tmp_path, "chosen")
    given = tuned(tmp_path, "given", epochs=30, lr=5e-4, select="last")
    mine, theirs = chosen.student, given.student
    assert mine is not None
    assert theirs is not None
    for name, tensor in mine.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name


class Killed(Silent):
    """Breaks a training off after so many steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    @contextmanager
    def stage(self, title: str, total: int, unit: str) -> Iterator[Any]:
        def advance(count: int) -> None:
            self.left -= count if unit == "steps" else 0
            if self.left < 0:
                raise KeyboardInterrupt

        yield advance


def test_a_run_that_was_killed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    """Also with weights of classes; its checkpoint is from before the kill."""
    how = {"class_weights": "sqrt", "checkpoint_s": 1e-9}
    whole = tuned(tmp_path, "whole", **how)
    with pytest.raises(KeyboardInterrupt):
        tuned(tmp_path, "killed", Killed(20), **how)
    assert list((tmp_path / "killed" / "checkpoints").glob("*.partial.safetensors"))
    notes = Notes()
    resumed = tuned(tmp_path, "killed", notes, **how)
    assert any("goes on from its last checkpoint" in note for note in notes.said)
    mine, theirs = whole.student, resumed.student
    assert mine is not None
    assert theirs is not None
    for name, tensor in mine.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name


@pytest.mark.parametrize(
    ("kind", "weights"),
    [
        # 8 rows: 6, 2 and none. Balanced: 8 / (2 * 6) and 8 / (2 * 2).
        ("balanced", [2 / 3, 2.0, 1.0]),
        # 1 / sqrt(n) times 8 / (sqrt(6) + sqrt(2))
        ("sqrt", [8 / (6 + math.sqrt(12)), 8 / (math.sqrt(12) + 2), 1.0]),
    ],
)
def test_weights_of_classes_by_hand(kind: str, weights: list[float]) -> None:
    found_K = class_weights(np.array([6, 2, 0]), kind)
    np.testing.assert_allclose(found_K.numpy(), weights, rtol=1e-6)
    assert float(found_K @ torch.tensor([6.0, 2.0, 0.0])) == pytest.approx(8), "a mean of 1"


def test_a_weighted_loss_by_hand() -> None:
    """Of three rows one is rare, and one has no label. ln 2 is lost on every even row."""
    gold_N = torch.tensor([0, 1, NO_LABEL])
    batch = Batch({}, np.arange(3), gold_N)
    weighted = WeightedClasses(torch.tensor([0.5, 2.0]))
    loss_N, has_N = weighted(StudentOutput(torch.zeros(3, 2)), None, batch, 0.0)
    assert has_N is not None
    assert has_N.tolist() == [True, True, False]
    np.testing.assert_allclose(loss_N[:2].numpy(), [0.5 * math.log(2), 2 * math.log(2)], rtol=1e-6)


def test_rare_classes_can_be_weighed(tmp_path: Path) -> None:
    """Labels that no text tells, nine to one: the share of answers follows the weights."""
    tiny.save(tmp_path / "base", "bert", layers=1, labels=["a", "b", "c"])
    rows = [(text, "rare" if i % 10 == 0 else "common")
            for i, (text, _) in enumerate(tiny.sentences(300))]  # fmt: skip
    tiny.write_csv(tmp_path / "rows.csv", ["text", "label"], rows)

    def mean_of_rare(kind: str) -> float:
        run = sh.finetune(
            tmp_path / "base", {"path": str(tmp_path / "rows.csv"), "max_length": 32},
            out=tmp_path / kind, resamples=20, cache=str(tmp_path / "cache"), progress=Silent(),
            training={"precision": "float32", "steps": 30, "lr": 1e-3, "class_weights": kind},
        )  # fmt: skip
        assert run.student is not None
        inputs = tiny.tokenizer()([text for text, _ in rows], padding=True, return_tensors="pt")
        with torch.no_grad():
            return float(run.student(**inputs).logits.softmax(-1)[:, 1].mean())

    plain, root, balanced = map(mean_of_rare, ("none", "sqrt", "balanced"))
    assert plain < 0.2 < root < balanced
    assert balanced == pytest.approx(0.5, abs=0.1)


def test_values_have_no_class_weights(tmp_path: Path) -> None:
    rows = [(text, f"{i / 7:.3f}") for i, (text, _) in enumerate(tiny.sentences(40))]
    tiny.write_csv(tmp_path / "values.csv", ["text", "label"], rows)
    tiny.save(tmp_path / "base", "bert", layers=1, labels=["a", "b"])
    config = parse(FinetuneConfig, {
        "model": str(tmp_path / "base"), "data": {"path": str(tmp_path / "values.csv")},
        "cache": str(tmp_path / "cache"), "training": {"class_weights": "sqrt"},
    })  # fmt: skip
    with pytest.raises(UsageError, match="class weights are for classes, and a regression"):
        prepare_gold(config, Silent()).weighted(config.training.class_weights)
    with pytest.raises(UsageError, match="class weights are for classes"):
        sh.finetune(config.model, config.data.model_dump(), out=tmp_path / "run",
                    training={"class_weights": "sqrt"}, cache=config.cache,
                    progress=Silent())  # fmt: skip
    assert not (tmp_path / "run").exists(), "refused before a folder is claimed"


@pytest.mark.parametrize(("labels", "new"), [(["negative", "positive"], False), (["a", "b"], True)])
@pytest.mark.parametrize("place", [".", "student"])
def test_a_head_for_the_same_classes_is_no_new_one(
    place: str, labels: list[str], new: bool, tmp_path: Path
) -> None:
    """Also in the folder of a run."""
    base = tmp_path / "base"
    tiny.save(base / place, "bert", layers=1, labels=labels)
    config = parse(FinetuneConfig, {
        "model": str(base), "data": {"path": str(tiny.reviews(tmp_path / "r.csv", 60))},
        "cache": str(tmp_path / "cache"),
    })  # fmt: skip
    assert prepare_gold(config, Silent()).new_head is new
